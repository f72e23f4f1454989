# Evidence for workers in places without AWS. Included by the Makefile.

PROOF_ANYWHERE := tests/unit/core/test_regions.py tests/contract/test_store.py \
	tests/integration/gateway/test_transfers.py tests/integration/gateway/test_bound_keys.py \
	tests/integration/gateway/test_brokering.py tests/integration/runner/test_task_credentials.py tests/integration/gateway/test_issuer_joins.py tests/acceptance/test_brokered.py \
	$(addprefix tests/acceptance/test_anywhere.py::,test_network_has_one_way_out test_tasks_run_and_find_no_aws \
	test_no_aws_credential_on_the_host test_logs_arrive_live test_cut_of_a_minute test_acceptance_suite \
	test_doctor_has_no_complaint test_copied_state_directory_stops_both)

.PHONY: proof-anywhere proof-anywhere-long
proof-anywhere: $(STAMP) chart ## workers behind one open port: joining by a bound key or an issuer's token, brokered AWS credentials under enforced IAM, queue, code and live logs through the gateway, a cut, copied state; limits of tasks; the Helm chart, the package for hosts and their Terraform modules
	@$(RUN) python ci/scripts/proof.py anywhere $(PROOF_ANYWHERE) $(PROOF_HOST)

proof-anywhere-long: $(STAMP) ## the same with a cut of ten minutes
	@$(RUN) python ci/scripts/proof.py anywhere-long tests/acceptance/test_anywhere.py
