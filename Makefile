# The commands of the workbench; `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help env demo test lab app export book bench check clean

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.ready
DEMO  := runs/demo

# The first Python that is new enough and can make environments; `make PYTHON=/path/to/python …` chooses another.
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10 python3.13 python3.14; do \
            $$p -c '$(USABLE)' 2>/dev/null && { echo $$p; break; }; done)

help: ## list these commands
	@sed -n 's/^\([a-z]*\):.*## /  make \1         /p' Makefile | sed 's/^\(  make .\{8\}\) */\1 /'

# -- environment ------------------------------------------------------------------------------
env: $(STAMP) ## make .venv and install the project into it (done by the others when needed)

# The stamp is written last and holds this folder's name: an interrupted install, changed
# requirements and a moved checkout (whose scripts point to the old place) all lead back here.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

$(STAMP): settings.ini setup.py pyproject.toml
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1 || { [ -s $(STAMP) ] && [ "$$(cat $(STAMP))" != "$(CURDIR)" ]; }; then \
	  p="$(PYTHON)"; \
	  "$$p" -c '$(USABLE)' 2>/dev/null || { \
	    echo "No usable Python$${p:+ ($$p)}: needs 3.10 or newer with the venv module." >&2; \
	    echo "On Debian or Ubuntu: apt install python3-venv; elsewhere: make PYTHON=/path/to/python3.12 …" >&2; exit 1; }; \
	  echo "== Making the environment $(VENV) with $$("$$p" --version)"; \
	  "$$p" -m venv --clear $(VENV); fi
	@echo "== Installing the packages: PyTorch is large, 3 to 10 minutes the first time, seconds later"
	@$(BIN)/python -m pip install --disable-pip-version-check -e '.[lab,dev]'
	@echo "$(CURDIR)" > $(STAMP)

# -- the two commands -------------------------------------------------------------------------
# Two runs of the same size and budget, with zones and without, side by side: each on one core, which is
# what networks this small use well. The notebook finds both in LZN_RUNS and shows them.
DEMO_TRAIN  = OMP_NUM_THREADS=1 $(BIN)/lzn joint --data digits --preset cpu --seed 0 --resume
DEMO_REPORT = OMP_NUM_THREADS=1 LZN_SEEDS=1 LZN_RUNS="$(CURDIR)/$(DEMO)" \
              $(BIN)/jupyter nbconvert --to html --execute nbs/22_joint.ipynb --output-dir $(DEMO) --log-level WARN

demo: env ## train one model that draws, names and embeds digits, leave a report (FRESH=1 starts anew)
	@[ -z "$(FRESH)" ] || { echo "== Starting anew: removing $(DEMO)"; rm -rf $(DEMO); }
	@mkdir -p $(DEMO)
	@echo "== 1/2 Training the joint model on handwritten digits, and beside it a plain rectified flow to compare:"
	@echo "       3 minutes on two cores, seconds if they are finished"
	@$(DEMO_TRAIN) --out $(DEMO)/rf-seed0 --baseline rf --quiet >$(DEMO)/rf.log 2>&1 & rf=$$!; \
	trap 'kill $$rf 2>/dev/null' EXIT; trap 'exit 130' INT TERM; \
	$(DEMO_TRAIN) --out $(DEMO)/joint-seed0 && { wait $$rf || { cat $(DEMO)/rf.log; false; }; } || \
	  { echo "== Stopped; 'make demo' goes on from here, 'make demo FRESH=1' starts anew" >&2; exit 1; }
	@html=$(DEMO)/22_joint.html; \
	if [ $$html -nt nbs/22_joint.ipynb ] && [ $$html -nt $(DEMO)/joint-seed0/metrics.jsonl ] && [ $$html -nt $(DEMO)/rf-seed0/metrics.jsonl ]; then \
	  echo "== 2/2 The report is up to date"; \
	else \
	  echo "== 2/2 Executing nbs/22_joint.ipynb into the report: a minute"; $(DEMO_REPORT) || exit 1; \
	fi; echo "== Done. Open $(CURDIR)/$$html"

# Two notebooks run side by side, so each gets half of the cores for its arithmetic.
NB_THREADS = $$(( ($$(getconf _NPROCESSORS_ONLN) + 1) / 2 ))

test: env ## check that notebooks, package and README agree, then run notebooks and pytest (25 minutes on two cores)
	@echo "== 1/3 Notebooks, exported package and README agree: seconds"
	@$(BIN)/python tools/check_notebooks.py
	@echo "== 2/3 Every notebook runs (tiny preset): minutes"
	@LZN_PRESET=tiny LZN_SEEDS=1 OMP_NUM_THREADS=$(NB_THREADS) $(BIN)/nbdev_test --n_workers 2 --timing --do_print
	@echo "== 3/3 pytest: minutes"
	@OMP_NUM_THREADS=$(NB_THREADS) $(BIN)/python -m pytest tests -q -n 2 --dist loadfile --no-loadscope-reorder

# A file that somebody gives to a widget comes as one message, of which a server takes 10 MB at most unless told otherwise
# (a larger one breaks the connection without a word). Settings in app/ let so much through that the widget itself can
# say what is too large; those of the user come beside them.
SETTINGS = JUPYTER_CONFIG_PATH="$(CURDIR)/app$${JUPYTER_CONFIG_PATH:+:$$JUPYTER_CONFIG_PATH}"

lab: env ## open JupyterLab on the index notebook (LAB="--no-browser …" passes options on)
	@echo "== Opening JupyterLab; end it with Ctrl-C"
	@$(SETTINGS) $(BIN)/jupyter lab $(LAB) nbs/index.ipynb

# Voila runs app/playground.ipynb, in its folder, for each visitor and shows what it displays, to this machine alone.
APP_PORT = 8866

app: env ## the playground as a page in the browser, without code (NETWORK=file DATA=name: of another network)
	@echo "== Serving http://127.0.0.1:$(APP_PORT); end it with Ctrl-C"
	@data="$(DATA)"; case "$$data" in folder:[!/~]*) data="folder:$(CURDIR)/$${data#folder:}";; esac; \
	  path="$(NETWORK)"; case "$$path" in [!/~]*) path="$(CURDIR)/$$path";; esac; \
	  LZN_APP_NETWORK="$$path" LZN_APP_DATA="$$data" OMP_NUM_THREADS=1 $(SETTINGS) \
	  $(BIN)/voila app/playground.ipynb --Voila.ip=127.0.0.1 --port=$(APP_PORT) $(APP)

# -- for those who edit -----------------------------------------------------------------------
export: env ## clean the notebooks, write lzn_nb/ and README.md from them (after every edit)
	@echo "== Writing lzn_nb/ and README.md from nbs/: seconds"
	@$(BIN)/nbdev_clean && $(BIN)/python tools/drop_views.py && $(BIN)/nbdev_export && $(BIN)/python tools/make_readme.py

BOOK := runs/book
# command, name of the folder, options: with zones and without, each with three seeds
SMALL := --set steps=800 --set jitter=0.3 --set rate_decoder=0.004
RUNS := $(foreach k,0 1 2,"generation generation $(k)" "generation generation-rf $(k) --baseline rf" "joint joint $(k)" "joint rf $(k) --baseline rf" \
          $(foreach b,unlabelled no-generation cross-entropy,"joint joint-$(b) $(k) --baseline $(b)") "joint joint-resnet-18 $(k) --baseline cross-entropy --set backbone=resnet18" \
          $(foreach m,lzn simclr moco supervised,"representation representation-$(m) $(k) --method $(m)") \
          "text text $(k) $(SMALL)" $(foreach b,contrastive without-label without-text without-image,"text text-$(b) $(k) --baseline $(b) $(SMALL)"))
# and where $LZN_DATA has MNIST, the same on it: up to twenty-four hours of a core more
HALF := --set precision=bf16 --set channels_last=True
LARGE := --set batch=256 --set steps=1000 --set warmup=50 --set ema=0.995
RUNS += $(if $(wildcard $(LZN_DATA)/MNIST),$(foreach k,0 1 2,"generation generation-mnist $(k) --data mnist --set rate_encoder=2e-4" "generation generation-mnist-rf $(k) --data mnist --baseline rf" \
          "joint joint-mnist $(k) --data mnist $(HALF)" "joint rf-mnist $(k) --data mnist --baseline rf $(HALF)" \
          $(foreach b,unlabelled no-generation cross-entropy,"joint joint-mnist-$(b) $(k) --data mnist --baseline $(b) $(HALF)") "joint joint-mnist-resnet-18 $(k) --data mnist --baseline cross-entropy --set backbone=resnet18 $(HALF)" \
          $(foreach m,lzn simclr moco supervised,"representation representation-mnist-$(m) $(k) --data mnist --method $(m)") \
          "text text-mnist $(k) --data mnist" "text text-mnist-contrastive $(k) --data mnist --baseline contrastive $(LARGE)"))

book: env ## run every notebook anew with its full settings and keep the outputs (two hours, up to fourteen where LZN_DATA has MNIST; trains 3 seeds)
	@echo "== Training three seeds of everything, two runs at a time: an hour and a half on two cores$(if $(wildcard $(LZN_DATA)/MNIST), and up to twelve hours for MNIST)"
	@rm -rf $(BOOK)
	@printf '%s\n' $(RUNS) | xargs -P 2 -L 1 sh -c 'what=$$1 k=$$2 s=$$3; shift 3; \
	  OMP_NUM_THREADS=1 $(BIN)/lzn $$what --preset cpu --seed $$s --out $(BOOK)/$$k-seed$$s --quiet "$$@" >/dev/null' sh
	@echo "== Executing all notebooks in place: about half an hour"
	@for page in nbs/[0-9]*.ipynb nbs/index.ipynb; do echo "-- $$page"; \
	  LZN_SAVE=1 LZN_RUNS="$(CURDIR)/$(BOOK)" $(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.store_widget_state=False --log-level ERROR $$page || exit 1; done
	@$(MAKE) --no-print-directory export

bench: env ## measure speed, memory and accuracy against the published solvers, keep the numbers (four hours; BENCH="speed --n 500" chooses)
	@echo "== Measuring; leave the machine alone meanwhile"
	@$(BIN)/python -m benchmarks $(or $(BENCH),all --save)

check: env ## only the first stage of test, without running anything
	@$(BIN)/python tools/check_notebooks.py

clean: ## remove caches and builds (ALL=1: also the environment and all runs)
	@echo "== Removing caches and builds$(if $(ALL), with $(VENV) and runs)"
	@rm -rf build dist _docs _proc *.egg-info .pytest_cache .hypothesis nbs/sidebar.yml $(if $(ALL),$(VENV) runs)
	@find lzn_nb nbs tests tools benchmarks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} + 2>/dev/null || true
