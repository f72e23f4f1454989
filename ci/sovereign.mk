# Evidence for data that stays in its region. Included by the Makefile.

PROOF_SOVEREIGN := tests/unit/core/test_residency_settings.py tests/integration/edge_worker/test_xcom_transfers.py \
	tests/integration/gateway/test_stored_xcoms.py tests/integration/gateway/test_regional_secrets.py \
	tests/unit/control_plane/test_strict.py tests/acceptance/test_sovereign.py tests/acceptance/test_residency.py \
	tests/contract/test_trigger_internals.py tests/integration/executor/test_triggers.py tests/integration/gateway/test_triggers.py \
	tests/unit/edge_worker/test_trigger_host.py tests/unit/edge_worker/test_trigger_log.py tests/integration/runner/test_trigger_host.py tests/acceptance/test_edge_triggers.py \
	tests/acceptance/test_private_endpoint.py tests/integration/edge_worker/test_expired_urls.py tests/chaos/test_regional_checks.py

.PHONY: proof-sovereign
proof-sovereign: $(STAMP) ## triggers through a cut and a kill, XComs of up to 1 GiB, secrets of two regions, a strict region searched for canaries: 15 minutes
	@$(RUN) python ci/scripts/proof.py sovereign $(PROOF_SOVEREIGN)
