# Evidence for data that stays in its region. Included by the Makefile.

PROOF_SOVEREIGN := tests/unit/core/test_residency_settings.py tests/integration/edge_worker/test_xcom_transfers.py \
	tests/integration/gateway/test_stored_xcoms.py tests/integration/gateway/test_regional_secrets.py \
	tests/unit/control_plane/test_strict.py tests/acceptance/test_sovereign.py tests/acceptance/test_residency.py

.PHONY: proof-sovereign
proof-sovereign: $(STAMP) ## stored XComs of up to 1 GiB, secrets of two regions, and a strict region searched for canaries: ten minutes
	@$(RUN) python ci/scripts/proof.py sovereign $(PROOF_SOVEREIGN)
