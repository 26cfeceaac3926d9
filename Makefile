# HierSAE: the graph of the pipeline. Each stage is a program that reads and writes folders under RUN; its target is the
# manifest that it writes last. Make's times say "maybe": a stage whose inputs and keys are unchanged says so and leaves
# its outputs alone.
#
#   make all                                  the default pipeline, into data/run
#   make all CONFIG=configs/synthetic.yaml    another one, into data/run-synthetic
#   make help                                 everything else

CONFIG ?= pipeline.yaml
RUN    ?= $(if $(filter pipeline.yaml,$(CONFIG)),data/run,data/run-$(basename $(notdir $(CONFIG))))
BIN    := $(or $(CARGO_TARGET_DIR),target)/release
FLAGS   = --config $(CONFIG) --run $(RUN)
RUNS    ?= 1 2 3 4 5 sweep
VARIANT ?=
REPRO  := data/run-repro
BENCH_FLAGS ?=
# For a GPU: make all CARGO_FLAGS='--locked --features train/cuda' (docs/training.md).
CARGO  ?= cargo
CARGO_FLAGS ?= --locked
SHELL  := bash
.SHELLFLAGS := -eu -o pipefail -c
# Stages get memory in huge pages where glibc (2.35 or newer) and the kernel leave that to programs: trainings are up to a tenth
# faster. HUGE_PAGES= does without.
HUGE_PAGES ?= GLIBC_TUNABLES=glibc.malloc.hugetlb=1
.SECONDARY:
.PRECIOUS: $(RUN)/%/manifest.json

# The pipeline file and those that it extends; a file that is not there is the stage's to name.
base  = $(realpath $(wildcard $(addprefix $(dir $1),$(shell sed -n "s/^extends: *['\"]*\([^'\" ]*\).*/\1/p" $1 2> /dev/null))))
chain = $1 $(foreach file,$(filter-out $2,$(base)),$(call chain,$(file),$2 $(file)))
CONFIGS := $(call chain,$(CONFIG),$(realpath $(CONFIG)))

# Only where the pipeline trains its language model itself is there a stage that does. (One that turns out to be called for
# nothing says so and publishes an empty folder.)
PRETRAIN := $(if $(shell grep -lE "name['\"]? *: *['\"]?pretrained\b" $(CONFIGS) 2> /dev/null),pretrain)
STAGES   := fetch pretrain harvest train recover probe report

.PHONY: all runs $(STAGES) status build hooks test bench repro clean clean-source help FORCE

all: report ## run every stage that is not up to date, then say where the report is
	@echo "report: $(RUN)/report/report.md"

$(STAGES): %: $(RUN)/%/manifest.json ## run one stage, and what it needs

# Who reads whom.
$(RUN)/harvest/manifest.json: $(RUN)/fetch/manifest.json $(PRETRAIN:%=$(RUN)/%/sample/manifest.json)
$(RUN)/pretrain/manifest.json: $(RUN)/fetch/manifest.json
$(RUN)/train/manifest.json:   $(RUN)/harvest/manifest.json
$(RUN)/recover/manifest.json: $(RUN)/train/manifest.json
$(RUN)/probe/manifest.json:   $(RUN)/train/manifest.json
$(RUN)/report/manifest.json:  $(RUN)/recover/manifest.json $(RUN)/probe/manifest.json

# A model whose sample failed is whole, and yet not all that the stage makes.
pretrain: $(PRETRAIN:%=$(RUN)/%/sample/manifest.json)
$(RUN)/pretrain/sample/manifest.json: $(RUN)/pretrain/manifest.json
	@[ $@ -nt $< ] || $(HUGE_PAGES) $(BIN)/pretrain $(FLAGS)

$(RUN)/%/manifest.json: $(CONFIGS) $(RUN)/.config $(BIN)/%
	@echo "== $*"
	@$(HUGE_PAGES) $(BIN)/$* $(FLAGS)

# Fetch always looks, since what it verifies may lie outside the run; a manifest that says the same keeps its time.
$(RUN)/fetch/manifest.json: FORCE $(CONFIGS) $(RUN)/.config $(BIN)/fetch
	@if [ -f $@ ]; then cp -p $@ $(RUN)/.fetch-before; else echo "== fetch"; fi
	@$(BIN)/fetch $(FLAGS)
	@if cmp -s $@ $(RUN)/.fetch-before; then touch -r $(RUN)/.fetch-before $@; fi

# Another CONFIG with the same RUN is a change, whatever the files' times.
$(RUN)/.config: FORCE
	@mkdir -p $(RUN)
	@echo "$(CONFIG)" | cmp -s - $@ || echo "$(CONFIG)" > $@

# Cargo knows whether a program is fresh; make only looks at its time afterwards.
$(STAGES:%=$(BIN)/%): build
	@:
build: ## compile all stages
	@command -v cargo > /dev/null || { echo "make: cargo not found; install Rust 1.95 or newer (rustup)"; exit 1; }
	@$(CARGO) build --release $(CARGO_FLAGS)

again-%: $(BIN)/% ## run one stage even if it is up to date
	@$(HUGE_PAGES) $(BIN)/$* $(FLAGS) --force

status: build ## what is fresh, stale, missing or failed, and why (given what lies upstream now)
	@for stage in $(if $(PRETRAIN),$(STAGES),$(filter-out pretrain,$(STAGES))); do $(BIN)/$$stage $(FLAGS) --status || true; done

hooks: all ## the same for each hook in harvest.also, whose datasets come from the same pass: into RUN@HOOK
	@$(HUGE_PAGES) $(BIN)/harvest $(FLAGS)
	@[ -s $(RUN)/.hooks ] || { echo "make: $(CONFIG) has no harvest.also"; exit 1; }
	@while read -r run; do $(MAKE) --no-print-directory all CONFIG=$$run/pipeline.yaml RUN=$$run; done < $(RUN)/.hooks

runs: build ## the planned runs and the sweep over L0, one after another into data/runs/N, then all there are in one report; RUNS="1 2" makes two, VARIANT=-loose the others
	@for n in $(RUNS); do \
	  echo "== run $$n$(VARIANT)"; \
	  $(MAKE) --no-print-directory all CONFIG=configs/runs/$$n$(VARIANT).yaml RUN=data/runs$(VARIANT)/$$n; \
	done
	@$(BIN)/report --config configs/runs/report$(VARIANT).yaml --run data/runs$(VARIANT)
	@echo "report: data/runs$(VARIANT)/report/report.md"

test: fetch ## all tests; the language model is fetched first, since some read it
	cargo test --release --workspace --locked

repro: build ## run the smoke pipeline with 1 and 2 threads in two folders and compare every digest
	@rm -rf $(REPRO)
	@for n in 1 2; do \
	  RAYON_NUM_THREADS=$$n $(MAKE) --no-print-directory all CONFIG=configs/smoke.yaml RUN=$(REPRO)/threads-$$n; \
	  (cd $(REPRO)/threads-$$n && find . -name manifest.json | LC_ALL=C sort | xargs sha256sum) > $(REPRO)/digests-$$n; \
	done
	@cat $(REPRO)/digests-1
	@diff $(REPRO)/digests-1 $(REPRO)/digests-2 && echo "repro: $$(wc -l < $(REPRO)/digests-1) manifests, equal with 1 and 2 threads"

bench: harvest ## train the same SAEs in PyTorch and here, side by side: see bench/README.md
	python3 bench/bench.py --harvest $(RUN)/harvest $(BENCH_FLAGS)

clean: ## remove what was generated under RUN and RUN@HOOK, and the scratch folders; sources and answers stay
	rm -rf $(RUN) $(RUN)@* $(REPRO) data/bench
clean-source: ## remove what was fetched
	rm -rf data/source

help: ## this list
	@echo "usage: make [TARGET] [CONFIG=pipeline.yaml] [RUN=data/run]"
	@sed -n -e 's/^$$(STAGES):/STAGE:/' -e 's/^again-%/again-STAGE/' -e 's/^\([A-Za-z-]*\):[^#]*## /\1 /p' Makefile \
	  | while read -r target what; do printf '  %-14s %s\n' "$$target" "$$what"; done
	@echo "STAGE is one of: $(STAGES)"
