# Version parity, images and what is needed to build them. Included by the Makefile.

AIRBRIDGE_CI = $(RUN) airbridge-ci
# `pinned` is the upstream base by digest; `debian` makes one of Debian's packages, where no registry can be reached.
BASE ?= pinned
IMAGES_OUT ?= dist
# Without systemd, containers need settings of their own.
ifeq ($(wildcard /run/systemd/system),)
export CONTAINERS_CONF ?= $(CURDIR)/images/containers.conf
endif

.PHONY: parity images base-debs images-tools images-verify images-test demo-images rollout-local images-lint workflows-lint
parity: $(STAMP) ## sources, lock, images, releases, environments, stacks and matrix agree
	@$(AIRBRIDGE_CI) parity $(if $(PARITY_FORMAT),--format $(PARITY_FORMAT))

.PHONY: parity-mutants proof-pipelines
parity-mutants: $(STAMP) ## wrong values in every place that states a fact: which check finds each? (MUTANTS=200 for a sample, VERBOSE=1)
	@$(RUN) python -m tests.parity_mutants $(if $(MUTANTS),--sample $(MUTANTS)) $(if $(VERBOSE),--verbose)

PROOF_PIPELINES := tests/unit/ci/test_parity.py tests/unit/ci/test_parity_mutants.py tests/unit/ci/test_inventory.py \
	tests/unit/ci/test_workflows.py tests/unit/ci/test_workflow_expressions.py tests/unit/ci/test_workflow_runner.py tests/unit/ci/test_built.py tests/unit/ci/test_sbom.py \
	tests/unit/ci/test_images.py tests/unit/ci/test_manifest.py \
	tests/unit/ci/test_promotion.py tests/unit/ci/test_approvals.py tests/unit/ci/test_deployment.py tests/integration/ci

proof-pipelines: $(STAMP) infra-install images-tools ## parity, its mutants, workflows, builds, signatures, promotion and rollout, on a registry and images that it makes
	@$(RUN) python ci/scripts/proof.py pipelines $(PROOF_PIPELINES)

images-tools: ## install buildah, podman, skopeo, docker-registry, cosign (Debian, Ubuntu)
	@bash ci/scripts/images_tools.sh

images: $(STAMP) ## build both images into dist/ (BASE=debian where no registry can be reached)
	@$(AIRBRIDGE_CI) build --base $(BASE) --out $(IMAGES_OUT)
	@$(AIRBRIDGE_CI) parity --built $(IMAGES_OUT)
	@$(AIRBRIDGE_CI) inspect --out $(IMAGES_OUT)

base-debs: $(STAMP) ## move the packages of the Debian base to today's versions: images/base-debs.toml
	@$(RUN) python ci/scripts/base_debs.py

images-verify: $(STAMP) ## build twice, from two clones in different folders, compare the digests, keep one in dist/
	@$(RUN) bash ci/scripts/images_verify.sh $(BASE) $(IMAGES_OUT)
	@$(AIRBRIDGE_CI) parity --built $(IMAGES_OUT)

images-test: $(STAMP) ## publish dist/ to a registry on this machine, pull by digest, tamper, run
	@$(RUN) pytest tests/integration/ci -q

demo-images: $(STAMP) ## the demo with every worker in its container
	@$(RUN) python ci/scripts/demo_images.py $(IMAGES_OUT)

rollout-local: export BASE = debian
rollout-local: $(STAMP) infra-install ## two releases through dev, staging and prod on this machine; a canary that fails and is rolled back (ONLY=1: dev alone; KEEP=dir keeps the builds)
	@$(RUN) python ci/scripts/rollout_local.py $(BASE) $(if $(ONLY),--only $(ONLY)) $(if $(KEEP),--keep $(KEEP))

images-lint: $(STAMP) ## hadolint over the Dockerfiles, shellcheck over the scripts
	@bash ci/scripts/images_lint.sh

workflows-lint: $(STAMP) ## actionlint and zizmor over .github/workflows
	@bash ci/scripts/workflows_lint.sh
