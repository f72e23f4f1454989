# Evidence that a bundle's packages are locked, built, verified and kept apart. Included by the Makefile.

PROOF_PACKAGES := tests/unit/executor/test_requirements.py tests/integration/environments \
	tests/integration/bundles/test_environments.py tests/integration/bundles/test_environment_push.py \
	tests/integration/runner/test_environments.py \
	tests/unit/edge_worker/test_environments.py \
	tests/integration/runner/test_file_system.py \
	tests/acceptance/test_first_real_dag.py tests/acceptance/test_packages.py \
	tests/acceptance/test_local_mode.py::test_two_environments_on_one_worker \
	tests/unit/ci/test_derived.py tests/acceptance/test_derived_image.py

.PHONY: proof-packages
proof-packages: $(STAMP) ## environments by digest: locks, conflicts, hostile requirements, two versions on one worker, the files that a task expects, a derived image in one pool
	@for tool in buildah podman skopeo docker-registry; do command -v $$tool >/dev/null || { $(MAKE) images-tools; break; }; done
	@$(RUN) python ci/scripts/proof.py packages $(PROOF_PACKAGES)

.PHONY: proof-examples
proof-examples: $(STAMP) ## Airflow's own example DAGs end as under LocalExecutor, with the state directory in /tmp, /var/lib and HOME
	@$(RUN) python ci/scripts/proof.py examples tests/acceptance/test_examples.py
