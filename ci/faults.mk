# Evidence that what a task relies on is kept. Included by the Makefile.

PROOF_FAULTS := tests/integration/gateway/test_refused_writes.py tests/integration/gateway/test_written_values.py \
	tests/integration/partition/test_refused_writes.py tests/integration/partition/test_overlap.py \
	tests/integration/runner/test_refused_values.py tests/integration/runner/test_access_denied.py \
	tests/integration/read_model/test_outcomes.py \
	tests/unit/core/test_task_calls.py tests/unit/edge_worker_runner/test_socket_room.py \
	tests/unit/core/test_task_options.py tests/unit/executor/test_fork_safety.py tests/unit/local/test_files.py \
	tests/integration/runner/test_task_options.py tests/integration/gateway/test_task_options.py \
	tests/integration/edge_worker/test_task_options.py tests/integration/executor/test_components.py \
	tests/acceptance/test_parity.py \
	tests/chaos/test_checker.py tests/acceptance/test_planted_truths.py tests/acceptance/test_newcomer.py \
	tests/integration/bundles/test_source_failures.py tests/integration/bundles/test_refused_early.py \
	tests/integration/bundles/test_dags_check.py tests/integration/dag_processing/test_file_names.py \
	tests/unit/cli/test_stdout.py tests/unit/docs/test_messages.py \
	tests/unit/local/test_refused_starts.py tests/unit/ci/test_setup.py

.PHONY: proof-faults
proof-faults: $(STAMP) ## no write lost silently, no two attempts at once, screens and commands that agree: on platforms that it starts
	@$(RUN) python ci/scripts/proof.py faults $(PROOF_FAULTS)
