# Evidence for many teams and many regions. Included by the Makefile.

PROOF_SCALE := tests/unit/executor/test_placement_prices.py tests/integration/executor/test_declared_assets.py \
	tests/unit/executor/test_fair_shares.py tests/integration/executor/test_teams.py tests/unit/core/test_regions.py \
	tests/unit/executor/test_limits.py tests/integration/executor/test_limits.py tests/integration/gateway/test_limited_claims.py \
	tests/integration/executor/test_outbox.py tests/integration/read_model/test_run.py \
	tests/unit/local/test_teams_file.py tests/unit/cli/test_usage.py tests/unit/dashboard/test_world.py \
	tests/unit/cli/test_commands.py::test_status_of_a_large_platform_fits_a_screen \
	tests/integration/gateway/test_status.py tests/integration/gateway/test_edge_events.py \
	tests/acceptance/test_teams.py tests/acceptance/test_limits.py tests/browser/test_fifty_regions.py tests/browser/test_run.py

.PHONY: proof-scale
proof-scale: $(STAMP) ## teams that share pools, limits, queues that do not answer, usage that adds up through retries and a killed worker, placement by price and assets, a run's page, status and pages of fifty regions
	@bash ci/scripts/browser_tools.sh
	@$(UV) sync --frozen --quiet --inexact --group browser
	@$(RUN) python ci/scripts/proof.py scale $(PROOF_SCALE)
