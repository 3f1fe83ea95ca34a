# Everything that people and CI run. `make help` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
CLUSTER := PYTHONPATH=cluster $(PY) -m mms_cluster
BENCH := PYTHONPATH=cluster:operator:workloads:. $(PY) benchmarks
export MMS_RESULTS ?= benchmarks/results

.PHONY: help setup demo test test-unit test-api test-e2e test-full sanitize lint format generate check-generated lock \
        images cluster-up cluster-status clean-cluster clean-cache clean bench-demo bench-reconcile bench-sync-ps bench-sync-ring \
        bench-train-step bench-checkpoint bench-recovery bench-goodput bench-embedding bench-neighbours bench-neighbours-served \
        bench-replay bench-replay-live bench-hotswap bench-coldstart bench-livesync bench-overhead bench-idle bench-autotune bench-precision bench-training-precision bench-tasks

help: ## Show this list
	@awk -F':.*## ' '/^[a-zA-Z_-]+:.*## /{printf "  \033[1m%-18s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Make the virtual environment with all that the project needs
	@PYTHON=$(PYTHON) scripts/setup

demo: setup ## Cluster, chart, corpus, training, serving, answers: from a bare machine
	@PYTHONPATH=cluster:operator:workloads $(PY) -m mms_cluster.demo

test: setup ## Everything that CI runs
	@$(MAKE) --no-print-directory lint check-generated
	@scripts/test-all

test-unit: setup ## Tests that need no cluster
	$(PY) -m pytest tests/unit

test-api: setup ## Tests against a real kube-apiserver
	$(PY) -m pytest tests/api

test-e2e: setup ## Tests on a real cluster with nodes
	$(PY) -m pytest tests/e2e -m "not slow"

test-full: setup ## The long campaigns too
	$(PY) -m pytest

sanitize: setup ## Tests of the native code, watched for misused memory and undefined behaviour
	@scripts/sanitize

lint: setup ## Style, types and the direction of imports
	$(VENV)/bin/ruff check --no-cache . # its cache does not know that a folder became a package
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	PYTHONPATH=operator:workloads $(VENV)/bin/lint-imports

format: setup ## Format the code
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

generate: setup ## Write crds/, docs/api.md and the chart's copies
	PYTHONPATH=operator:workloads $(PY) -m mms_operator.api.generate
	PYTHONPATH=operator:workloads $(PY) charts/generate.py

check-generated: setup ## Say what `make generate` would change
	PYTHONPATH=operator:workloads $(PY) -m mms_operator.api.generate --check
	PYTHONPATH=operator:workloads $(PY) charts/generate.py --check

lock: setup ## Resolve the dependencies anew
	scripts/lock

images: setup ## Build the container images; REGISTRY=host/path pushes them
	PYTHONPATH=cluster $(PY) -m mms_cluster.images build $(if $(REGISTRY),--push $(REGISTRY))

cluster-up: setup ## A real Kubernetes on this machine
	$(CLUSTER) up

cluster-status: setup ## What of it runs
	$(CLUSTER) status

clean-cluster: setup ## Take it down; nothing of it stays but what was built
	$(CLUSTER) down

bench-demo: setup ## Seconds of each phase of the demo, cold and warm
	$(BENCH)/demo.py

bench-reconcile: setup ## 1,000 trainings at once against a bare loop of the same writes
	$(BENCH)/reconcile.py

bench-sync-ps: setup ## Push and pull against gRPC, torch RPC, ZeroMQ, gloo and a bare TCP stream
	$(BENCH)/sync_ps.py

bench-sync-ring: setup ## All-reduce against gloo
	$(BENCH)/sync_ring.py

bench-train-step: setup ## Steps per second against DistributedDataParallel on gloo
	$(BENCH)/train_step.py

bench-recovery: setup ## Deaths of processes, pods, a node, the master, shards: against torchrun elastic, on the cluster
	$(BENCH)/recovery.py

bench-embedding: setup ## Word vectors: words per second and quality, against gensim
	$(BENCH)/embedding.py

bench-neighbours: setup ## Time to the nearest neighbours of a word, against gensim
	$(BENCH)/neighbours.py

bench-neighbours-served: setup ## Neighbours through a serving pod on one core: 100,000 words, and a graph of 250,000
	$(BENCH)/neighbours_served.py

bench-encryption: setup ## Bytes that a core decrypts in a second, and what encrypted data costs a reader
	$(BENCH)/encryption.py

bench-augmentation: setup ## Augmented samples per second, against torchvision on one process
	$(BENCH)/augmentation.py

bench-tasks: setup ## Samples per second and accuracy of tasks, against a plain loop in PyTorch
	$(BENCH)/tasks.py

bench-few-labels: setup ## Word vectors as the input of a classifier of few labelled texts, against none
	$(BENCH)/few_labels.py

bench-goodput: setup ## Part of the undisturbed rate that is kept while workers die, against torchrun
	$(BENCH)/goodput.py

bench-checkpoint: setup ## What checkpoints cost a training, against torch.distributed.checkpoint; suspension
	$(BENCH)/checkpoint.py

bench-replay: setup ## Replicas by the objective on two traces, against KPA, HPA, KEDA and static fleets
	$(BENCH)/replay.py

bench-replay-live: setup ## A compressed trace on the cluster: replicas by the objective, by the HPA, and static fleets
	$(BENCH)/replay_live.py

bench-hotswap: setup ## Another artifact into a running pod, under load; and new pods instead
	$(BENCH)/hotswap.py

bench-autotune: setup ## Requests a second by the way of batching that a pod finds, ours untuned, and Triton's default
	$(BENCH)/autotune.py

bench-precision: setup ## Networks in INT8 and BF16: speed, size and answers, for an image and a text model
	$(BENCH)/precision.py

bench-training-precision: setup ## Training with products in BF16 against a plain loop in float32: speed and accuracy
	$(BENCH)/training_precision.py

bench-coldstart: setup ## From no pods to the first answer, on the cluster; and by hand
	$(BENCH)/coldstart.py

bench-livesync: setup ## Age of a running training's parameters in a serving pod, and what following costs
	$(BENCH)/livesync.py

bench-idle: setup ## Memory and processor time of agent and activator while nobody asks, on the cluster
	$(BENCH)/idle.py

bench-overhead: setup ## Requests a second through a service, without and with an edge, against Triton alone, on the cluster
	$(BENCH)/overhead.py

clean-cache: ## Remove built programs, images and wheels, which take minutes to make again
	rm -rf "$${XDG_CACHE_HOME:-$$HOME/.cache}/mms"

clean: ## Remove what was built here
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache benchmarks/results
