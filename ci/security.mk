# Fuzzing, and what looks for weaknesses in sources and dependencies. Included by the Makefile.

FUZZ_SECONDS ?= 30
FUZZ_EXAMPLES ?= 25
FUZZ_TARGETS ?= envelope request access_token certificate spiffe csr scope call archive log_segment answer frame
# Neither is in the lock: each has dependencies newer than Airflow's era, so it has an environment of its own.
TOOL_ERA := 2026-11-20
SCHEMATHESIS := .tools/schemathesis/bin/schemathesis

.PHONY: fuzz fuzz-api security
fuzz: $(STAMP) ## every parser of network bytes under atheris, FUZZ_SECONDS each (30)
	@set -e; for target in $(FUZZ_TARGETS); do \
	  echo "== $$target"; \
	  $(UV) run --no-sync --exclude-newer $(TOOL_ERA) --with atheris==3.0.0 python -m tests.fuzz.run $$target \
	    -max_total_time=$(FUZZ_SECONDS) -timeout=10 -artifact_prefix=.tools/ -rss_limit_mb=2048 2>&1 | tail -n 1; \
	done

$(SCHEMATHESIS): | $(STAMP)
	@$(UV) venv --quiet .tools/schemathesis
	@$(UV) pip install --quiet --no-config --exclude-newer $(TOOL_ERA) --python .tools/schemathesis/bin/python schemathesis==4.32.5

fuzz-api: $(STAMP) $(SCHEMATHESIS) ## schemathesis over the gateway's OpenAPI, FUZZ_EXAMPLES (25) an endpoint
	@AIRBRIDGE_SCHEMATHESIS=$(CURDIR)/$(SCHEMATHESIS) AIRBRIDGE_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) \
	  $(RUN) pytest tests/integration/gateway/test_schemathesis.py -q

security: $(STAMP) ## bandit, the lock's hashes, licences, published vulnerabilities; each exception has its reason
	@test -x .tools/bandit/bin/bandit || { $(UV) venv --quiet .tools/bandit; \
	  $(UV) pip install --quiet --no-config --exclude-newer $(TOOL_ERA) --python .tools/bandit/bin/python bandit==1.9.4; }
	@$(RUN) python ci/scripts/security.py .tools/bandit/bin/bandit
	@$(RUN) airbridge-ci advisories --check

PROOF_SECURITY := tests/integration/gateway/test_hostile_bodies.py tests/integration/gateway/test_bodies.py \
	tests/integration/gateway/test_generations.py tests/integration/gateway/test_anchors.py \
	tests/integration/gateway/test_operators.py tests/integration/gateway/test_token_audit.py \
	tests/integration/gateway/test_sign_in.py tests/integration/gateway/test_four_eyes.py \
	tests/integration/dashboard/test_four_eyes.py tests/integration/gateway/test_limits.py \
	tests/integration/gateway/test_floods.py tests/security/test_heartbeats_under_floods.py tests/security/test_metadata.py \
	tests/unit/control_plane/test_body_reads.py \
	tests/integration/dag_processing tests/integration/runner/test_sandbox.py \
	tests/integration/runner/test_hostile_files.py tests/contract/test_inert_bodies.py tests/contract/test_param_patterns.py \
	tests/acceptance/test_inventory.py tests/integration/executor/test_roles.py \
	tests/unit/executor/test_bundle_store.py tests/unit/core/test_tar_reader.py

.PHONY: proof-security
proof-security: $(STAMP) ## the attacks of the security review, on a gateway, a dag-processor and a task sandbox that it starts, and the inventory of secrets of a platform
	@$(RUN) python ci/scripts/proof.py security $(PROOF_SECURITY)
