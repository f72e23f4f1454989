# The infrastructure's targets. Included by the Makefile.
#
# CDK for Terraform lives in an environment of its own (infra/.venv), because only this room needs it.

INFRA_ENV := UV_PROJECT_ENVIRONMENT=$(CURDIR)/infra/.venv
INFRA_PYTHON := $(CURDIR)/infra/.venv/bin/python
CHECKOV_VERSION := 3.3.30

.PHONY: infra-install synth infra-local infra-local-plan infra-local-destroy infra-test infra-scan

infra/.venv/.installed: $(UV) infra/pyproject.toml uv.lock
	$(INFRA_ENV) $(CURDIR)/$(UV) sync --quiet --package airbridge-infra --extra emulator --group dev
	touch $@

infra/node_modules/.installed: infra/package.json infra/package-lock.json
	cd infra && npm ci --no-audit --no-fund
	touch $@

infra-install: infra/.venv/.installed infra/node_modules/.installed ## install what the infrastructure needs

synth: infra/.venv/.installed ## synthesise every environment into infra/cdktf.out/<environment>/
	cd infra && $(INFRA_PYTHON) -m airbridge.infra.synth

infra-local: infra-install ## deploy the platform to an AWS emulator on this machine
	cd infra && $(INFRA_PYTHON) -m airbridge.infra.local up

infra-local-plan: infra-install ## plan every stack on the emulator; fails if one would change
	cd infra && $(INFRA_PYTHON) -m airbridge.infra.local plan

infra-local-destroy: infra-install ## destroy what infra-local made
	cd infra && $(INFRA_PYTHON) -m airbridge.infra.local destroy

infra-test: infra/.venv/.installed ## the infrastructure's tests, in one process
	$(INFRA_PYTHON) -m pytest --confcutdir=tests/infra tests/infra

infra-scan: synth ## checkov over the synthesised stacks
	cd infra && $(INFRA_PYTHON) -m airbridge.infra.scan cdktf.out/prod \
		--checkov "$(CURDIR)/$(UV) tool run --no-config --python 3.12 checkov@$(CHECKOV_VERSION)"

CDKTN := cdktn==0.22.1 cdktn-provider-aws==23.0.0

infra-cdktn: ## install cdktn beside cdktf, for the test that compares them
	$(UV) venv --quiet --allow-existing infra/.venv-cdktn
	VIRTUAL_ENV=$(CURDIR)/infra/.venv-cdktn $(UV) pip install --quiet --no-config $(CDKTN) "pydantic>=2.11" boto3 structlog
.PHONY: infra-cdktn
