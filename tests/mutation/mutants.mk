# Mutation testing; see tests/mutation/README.md.

MUTANTS_SAMPLE ?= 8
MUTANTS_SEED ?= 13
MUTANTS_JOBS ?= 2
.PHONY: mutants
mutants: $(STAMP) ## mutation testing of ledger, leases, claims, placement, outbox, policy, journal: MODULES=outbox,claims MUTANTS=all WIDE=1 RESUME=1
	@$(UV) sync --frozen --quiet --inexact --group coverage
	@$(RUN) python -m tests.mutation --sample $(or $(MUTANTS),$(MUTANTS_SAMPLE)) --seed $(MUTANTS_SEED) \
		--jobs $(MUTANTS_JOBS) $(if $(MODULES),--modules $(MODULES)) $(if $(WIDE),--wide) $(if $(RESUME),--resume)
