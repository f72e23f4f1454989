# Workers on hosts and on Kubernetes. Included by the Makefile.

# Helm's library and Kubernetes' schemas, for the chart's tests: no helm is installed.
HELM_SDK_VERSION := 0.2.2
KUBERNETES_VALIDATE_VERSION := 1.37.0
CHART_PYTHON := .tools/chart/bin/python

.tools/chart/.installed: $(STAMP)
	@$(UV) venv --quiet --allow-existing .tools/chart
	@$(UV) pip install --quiet --no-config --python $(CHART_PYTHON) helm-python-sdk==$(HELM_SDK_VERSION) \
		kubernetes-validate==$(KUBERNETES_VALIDATE_VERSION) 'pytest>=8' 'pyyaml>=6'
	@touch $@

.PHONY: chart
chart: .tools/chart/.installed ## the Helm chart: lint, schema, manifests against Kubernetes' schemas and their snapshots
	@PYTHONPATH=$(CURDIR) $(CHART_PYTHON) -m pytest -q -p no:cacheprovider --rootdir tests/chart -c /dev/null \
		--confcutdir=tests/chart tests/chart/test_rendering.py
	@$(RUN) pytest tests/chart/test_manifests.py -q -n 0

.PHONY: terraform-modules
terraform-modules: $(STAMP) ## the Terraform modules of workers: format, types, refusals, examples, and the values that the chart gets
	@$(RUN) pytest tests/terraform -q -n 0

# What `make proof-anywhere` runs of this page: limits of tasks, the chart's manifests, the unit, the Terraform modules.
PROOF_HOST := tests/integration/runner/test_limits.py tests/contract/test_leaves.py tests/integration/edge_worker/test_limits.py \
	tests/chart/test_manifests.py tests/host/test_unit.py tests/terraform/test_modules.py

.PHONY: proof-host
proof-host: $(STAMP) .tools/chart/.installed images-tools ## the package installed, upgraded and removed in a container with systemd, by hand and by Terraform; the chart's pod under its restrictions (root)
	@$(RUN) python ci/scripts/proof.py host tests/host/test_install.py tests/host/test_terraform.py tests/chart/test_container.py
