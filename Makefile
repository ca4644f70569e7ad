# Everything a person or CI does here. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python

# An existing cluster for `make demo`; without one, a cluster is made here.
KUBECONFIG :=
REGISTRY :=
TAG := latest

# What `make release` builds besides wheels and chart, and the version that `make version` writes everywhere.
IMAGES := operator trainer viewer
VERSION :=

# The checkpoint that `make serve` serves: what `make demo` leaves.
MODEL := build/demo/model

# What the code of an export is tried with; configuration_trenchcoat.py names the same.
TRANSFORMERS := 4.56.0 4.57.6 5.0.0 5.24.0

.PHONY: help venv docs demo local-demo test test-serving test-browser test-tasks test-tracking test-versions test-release release version serve unit explore lint format crds chart-docs plan-table lock cluster-up cluster-down cluster-status images

help:  ## show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

venv:  ## install the locked dependencies (once, into the cache) and this project into .venv
	@hack/python-env

local-demo: venv  ## linearize a small Llama on this machine, without a cluster
	$(PYTHON) examples/tiny_teacher.py --store build/store
	.venv/bin/trenchcoat run examples/tiny.yaml --store build/store --summary build/store/summary.json

demo: venv  ## linearize a small Llama on a real Kubernetes; KUBECONFIG=... REGISTRY=... TAG=... use yours
	$(PYTHON) hack/demo $(if $(KUBECONFIG),--kubeconfig $(KUBECONFIG)) $(if $(REGISTRY),--registry $(REGISTRY) --tag $(TAG))

test:  ## lint and all tests, those on a real cluster included; starts and removes a cluster of its own
	@hack/test

serve: venv  ## serve an exported checkpoint with vLLM on this machine's CPU, at port 8000; MODEL=FOLDER
	@hack/python-env serving
	VLLM_CPU_KVCACHE_SPACE=$${VLLM_CPU_KVCACHE_SPACE:-1} .venv-serving/bin/python \
	  -m vllm.entrypoints.openai.api_server --model $(MODEL) --host 127.0.0.1 --served-model-name student

test-serving: venv  ## vLLM's real engine on the CPU serves exports; not part of make test (a few minutes, 6 GB once)
	hack/python-env serving
	$(PYTHON) -m pytest tests/serving

test-browser:  ## pages in a real Chromium, which root gets from Debian; not part of make test (a minute or two)
	@command -v chromium > /dev/null || [ -n "$$TRENCHCOAT_CHROMIUM" ] || \
	  { apt-get update && apt-get install -y --no-install-recommends chromium; }
	@hack/python-env browser
	.venv-browser/bin/python -m pytest tests/browser

test-versions: venv  ## an export under the oldest and newest transformers 4 and 5, nothing else beside them; not part of make test
	$(PYTHON) -m pytest tests/versions

test-tasks: venv  ## lm-evaluation-harness on teacher and student; not part of make test (a minute, 300 MB)
	hack/python-env tasks
	.venv-tasks/bin/python -m pytest tests/trainer/stages/evaluate/test_tasks.py tests/benchmarks/test_quality.py

test-release: venv  ## what `make release` leaves, installed where nothing else is, runs the README's commands; not part of make test
	hack/python-env release
	$(PYTHON) -m pytest tests/release

release: venv  ## wheels, sdists, chart, images, SBOMs, checksums, into build/release; IMAGES= leaves images out
	hack/python-env release
	$(PYTHON) hack/release --images $(IMAGES)

version: venv  ## write VERSION=1.2.3 into pyproject.toml and wherever else it stands
	$(PYTHON) hack/release --set-version $(VERSION)

test-tracking: venv  ## real servers of MLflow and trackio, TensorBoard's own reader; not part of make test (1 GB once)
	hack/python-env tracking
	hack/python-env tracking-server
	.venv-tracking/bin/python -m pytest tests/trainer/runtime/test_trackers.py tests/cluster/test_tracking.py

docs:  ## the documentation site, into build/site; fails where a link leads nowhere
	@hack/python-env docs
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo "To read it, with its search: python3 -m http.server --directory build/site"

unit: venv  ## tests without a cluster, under a minute; make test has the slow ones too
	$(PYTHON) -m pytest -q -n auto tests --ignore tests/cluster --ignore tests/serving --ignore tests/versions --ignore tests/browser --ignore tests/release -m "not slow"

explore: venv  ## the property tests ten times over, with other examples each time
	for seed in $$(shuf -i 1-1000000 -n 10); do \
	  $(PYTHON) -m pytest -q -n auto tests --ignore tests/cluster --ignore tests/serving --ignore tests/versions --ignore tests/browser --ignore tests/release -m hypothesis --hypothesis-profile=explore --hypothesis-seed=$$seed; \
	done

lint: venv  ## ruff, mypy --strict on api, operator, plugin, reports, s3 and viewer, who may import whom, sizes
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy api operator plugin reports s3 viewer
	.venv/bin/lint-imports --no-cache --no-logo
	hack/check-sizes

format: venv  ## ruff's formatter and fixes
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

crds: venv  ## generate crds/ and the chart's copy from api/
	hack/generate-crds

chart-docs: venv  ## write the chart's README and schema descriptions from the comments in values.yaml
	$(PYTHON) hack/chart-docs

plan-table: venv  ## write the table of docs/planning.md
	$(PYTHON) hack/plan-table

lock: venv  ## pin the newest versions that pyproject.toml allows
	.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --extra operator pyproject.toml -o requirements/operator.txt
	.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --extra trainer pyproject.toml -o requirements/trainer.txt
	.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --extra dev pyproject.toml -c requirements/trainer.txt -c requirements/operator.txt -o requirements/dev.txt
	# What tasks need beyond what the trainer has on every platform, in the versions that fit it.
	.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --extra tasks pyproject.toml -c requirements/trainer.txt \
	  $$(sed -nE '/platform/d; s/^([A-Za-z0-9._-]+)==.*/--no-emit-package \1/p' requirements/trainer.txt) -o requirements/tasks.txt
	.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --extra tracking pyproject.toml -c requirements/trainer.txt \
	  $$(sed -nE '/platform/d; s/^([A-Za-z0-9._-]+)==.*/--no-emit-package \1/p' requirements/trainer.txt) -o requirements/tracking.txt
	.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  requirements/tracking-server.in -o requirements/tracking-server.txt
	.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --extra report pyproject.toml -c requirements/trainer.txt -o requirements/report.txt
	.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  requirements/browser.in -c requirements/dev.txt -c requirements/report.txt -o requirements/browser.txt
	.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  requirements/docs.in -c requirements/dev.txt -o requirements/docs.txt
	.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  requirements/release.in -o requirements/release.txt
	.venv/bin/uv pip compile -q --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes \
	  --no-annotate --no-header --override requirements/serving-overrides.txt requirements/serving.in \
	  -o requirements/serving.txt
	for version in $(TRANSFORMERS); do \
	  echo "transformers==$$version" | .venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes \
	    --no-annotate --no-header - -o requirements/transformers/$$version.txt; \
	done

images: ## build all images, into the cluster made here if it runs
	hack/cluster/cluster images

cluster-up:  ## start the local cluster
	hack/cluster/cluster up

cluster-down:  ## remove the local cluster and every trace of it but the cache
	hack/cluster/cluster down

cluster-status:  ## what of the local cluster is there
	hack/cluster/cluster status
