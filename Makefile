# Every task of this project. Needs Python 3.11 or later and make; the rest is installed into .venv.

PYTHON ?= python3
NODES ?= 3
WORKERS ?= 6
BIN := .venv/bin
READY := .venv/.ready
PACKAGES := dss_api dss_admin dss_raft dss_locks dss_queue dss_cache dss_console dss_project dss_dev dss_client dss_cli dss_django dss_kombu dss_celery dss_tooz
COMPILE := pip-compile --quiet --generate-hashes --strip-extras --no-header \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	--find-links build/wheels --unsafe-package dss-client

.DEFAULT_GOAL := help
.PHONY: help run restart join shop celery test lint format docs architecture bench bench-raft bench-client bench-near bench-viewer bench-growth bench-memory bench-peers bench-sqs bench-celery bench-engine load upgrade postman sim story mutants model encrypted chaos chaos-engine rounds hostile fuzz suites audit lock clean

help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): requirements.lock pyproject.toml client/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or later is needed, but $(PYTHON) is " + sys.version.split()[0] + ". Choose another one: make PYTHON=python3.12 …")'
	@echo "Setting up .venv (once, about a minute)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r requirements.lock
	@# On all cores. Some packages hold templates that are no valid Python.
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . -e client
	@touch $(READY)

run: $(READY) ## start a cluster of three nodes (NODES=1: a single one; TLS=1: with HTTPS) and follow its logs
	@exec $(BIN)/python manage.py cluster --nodes $(NODES) $(if $(TLS),--tls)

restart: $(READY) ## start a stopped node of the running cluster again: NODE=3
	@exec $(BIN)/python manage.py restart $(NODE) $(ARGS)

join: $(READY) ## add one more node to the running cluster, and follow its log
	@exec $(BIN)/python manage.py join $(ARGS)

shop: $(READY) ## start the Django shop of examples/shop, with a node of its own if no cluster runs
	@exec $(BIN)/python examples/shop/run.py $(ARGS)

celery: $(READY) ## run tasks of Celery on the cluster (examples/celery), with three nodes of its own if no cluster runs
	@exec $(BIN)/python examples/celery/run.py $(ARGS)

test: $(READY) ## run all tests, in six workers (WORKERS=0: in one process)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope $(ARGS)

lint: $(READY) ## check style, types and the import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(READY) ## format the code
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .

docs: $(READY) ## build the documentation into docs/_build, and check its links
	@$(BIN)/sphinx-build -q -E -W --keep-going -b html docs docs/_build
	@echo "docs/_build/index.html"

architecture: $(READY) ## draw the imports between packages into docs/imports.svg (needs Graphviz's dot)
	@$(BIN)/import-linter drawgraph $(PACKAGES) | dot -Tsvg -o docs/imports.svg
	@$(BIN)/import-linter drawgraph dss_raft | dot -Tsvg -o docs/imports-raft.svg

bench: $(READY) ## measure three nodes over HTTP, with Daphne and with uvicorn
	@$(BIN)/python benchmarks/bench_http.py $(ARGS)

bench-raft: $(READY) ## measure Raft alone: throughput, latency, failover
	@$(BIN)/python benchmarks/bench_raft.py $(ARGS)

bench-client: $(READY) ## measure the Python client against a bare WebSocket, and aio-pika on RabbitMQ if that is installed
	@$(BIN)/python benchmarks/bench_client.py $(ARGS)

bench-near: $(READY) ## measure the near cache against redis-py and django-redis, and puts with 50 near caches (needs redis-server; django-redis if installed)
	@$(BIN)/python benchmarks/bench_near.py $(ARGS)

bench-viewer: $(READY) ## measure what the live page costs the nodes
	@$(BIN)/python benchmarks/bench_viewer.py $(ARGS)

bench-growth: $(READY) ## measure whether a node with much data is slower than an empty one
	@$(BIN)/python benchmarks/bench_growth.py $(ARGS)

bench-peers: $(READY) ## measure three nodes next to etcd, RabbitMQ, NATS and Redis, those that are installed
	@$(BIN)/python benchmarks/bench_peers.py $(ARGS)

bench-sqs: $(READY) ## measure the SQS endpoint next to the project's own HTTP calls
	@$(BIN)/python benchmarks/bench_sqs.py $(ARGS)

bench-celery: $(READY) ## measure Celery on dss://, sqs:// and Redis, those that are installed
	@$(BIN)/python benchmarks/bench_celery.py $(ARGS)

bench-engine: $(READY) ## measure topics on a Valkey Cluster next to topics in the log (ARGS=--memory: the memory that they take in the nodes)
	@$(BIN)/python benchmarks/bench_engine.py $(ARGS)

bench-memory: $(READY) ## measure how much memory a lock, a message, a connection, … takes in a node
	@$(BIN)/python benchmarks/bench_memory.py $(ARGS)

load: $(READY) ## Locust: 200 users for 60 s against a running cluster (NODES=1: against the single one)
	@mkdir -p report
	@$(BIN)/locust -f benchmarks/load_test_scenarios.py --headless -u 200 -r 50 -t 60s --only-summary --csv report/locust \
		$(if $(filter 1,$(NODES)),--host http://127.0.0.1:8201) $(ARGS)

upgrade: $(READY) ## upgrade three nodes under load from the older release to this one, back, and forward again
	@$(BIN)/python -m dss_dev.upgrade $(ARGS)

postman: ## run the Postman collection against a running cluster (NODES=1: the single one; needs Node.js)
	@npx --yes newman@6 run postman/distributed-sync-system.postman_collection.json \
		-e postman/$(if $(filter 1,$(NODES)),single,local).postman_environment.json $(ARGS)

sim: $(READY) ## simulate Raft: SEEDS=1000 worlds, or SEED=7 replayed with its trace
	@$(BIN)/python tests/raft/simulation/run.py $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),1000)) $(ARGS)

story: $(READY) ## write what happens in SEED=7 as one HTML file with a scrubber (BUG="half is a quorum": with a planted bug)
	@$(BIN)/python tests/raft/simulation/story.py --seed $(or $(SEED),7) $(if $(BUG),--bug "$(BUG)") $(ARGS)

mutants: $(READY) ## plant bugs in Raft, and check that each one is found
	@$(BIN)/python tests/raft/simulation/mutants.py $(ARGS)

model: ## search the model of the cache's protocol completely, and check that every planted bug is found (needs spin and gcc)
	@$(PYTHON) cache/model/check.py $(ARGS)

hostile: $(READY) ## attack a node that has 512 MB, 1,024 descriptors and 400 threads, with each server (HOSTILE=10: the size); then fuzz
	@DSS_HOSTILE=$(or $(HOSTILE),10) $(BIN)/python -m pytest -q tests/cluster/hostile $(ARGS)
	@$(MAKE) --no-print-directory fuzz

encrypted: $(READY) ## everything at once: mutual TLS, HTTPS, a token, nginx in front; the contract, Postman, Locust (USERS=100, TIME=60s), the client
	@TEST_ENCRYPTED=1 TEST_LOCUST_USERS=$(or $(USERS),100) TEST_LOCUST_TIME=$(or $(TIME),60s) $(BIN)/python -m pytest -q tests/cluster/test_all_encrypted.py $(ARGS)

chaos: $(READY) ## load clusters that are killed, paused and cut off, and check all answers (cutting off needs root on Linux)
	@DSS_CHAOS_MESSAGES=$(or $(MESSAGES),100000) DSS_CHAOS_OPERATIONS=$(or $(OPERATIONS),200000) DSS_CHAOS_ROUNDS=$(or $(ROUNDS),10) \
		$(BIN)/python -m pytest -q -s -o log_cli=false \
		tests/cluster/test_queue_under_faults.py tests/cluster/test_locks_under_faults.py tests/cluster/test_cache_under_faults.py \
		tests/cluster/test_near_under_faults.py $(ARGS)

chaos-engine: $(READY) ## account for 100,000 messages (MESSAGES) on a Valkey Cluster while primaries are killed (ARGS=--cut: their replicas lack the last writes)
	@$(BIN)/python -m dss_dev.engine_chaos --messages $(or $(MESSAGES),100000) $(ARGS)

rounds: $(READY) ## each fault of disks, clocks and members ROUNDS=10 times on real processes, at random moments (some need root on Linux)
	@TEST_ROUNDS=$(or $(ROUNDS),10) $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadscope -m rounds $(ARGS)

fuzz: $(READY) ## CALLS=200000 hostile calls to three nodes, COMMANDS=1000000 random commands, SCHEMA_CALLS=20000 from OpenAPI
	@$(BIN)/python tests/fuzz/fuzz_commands.py --commands $(or $(COMMANDS),1000000)
	@DSS_SCHEMA_CALLS=$(or $(SCHEMA_CALLS),20000) $(BIN)/python -m pytest -q -s tests/fuzz/test_openapi_calls.py
	@$(BIN)/python tests/fuzz/fuzz_calls.py --calls $(or $(CALLS),200000)

suites: $(READY) ## run the tests of other projects against a node, and print a table (SUITES="moto-sqs tooz-dss": only these; needs PyPI)
	@$(BIN)/python tests/suites/run.py $(SUITES) $(ARGS)

audit: ## look for known vulnerabilities in the pinned packages, and write the list of parts (SBOM) to report/ (needs PyPI)
	@test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/pip install --quiet pip-audit cyclonedx-bom; }
	@mkdir -p report
	@.venv-audit/bin/cyclonedx-py requirements docker/requirements.lock --of JSON -o report/sbom.json
	@echo "report/sbom.json"
	@.venv-audit/bin/pip-audit --disable-pip --require-hashes -r docker/requirements.lock $(ARGS)

# dss-client is a part of this repository, so it is not pinned. Its wheel tells pip-compile what it needs.
lock: ## pin the dependencies of pyproject.toml and of the suites again (needs pip-tools)
	@$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps -w build/wheels ./client
	@$(COMPILE) --extra dev -o requirements.lock pyproject.toml client/pyproject.toml
	@$(COMPILE) -o docker/requirements.lock pyproject.toml
	@$(COMPILE) --allow-unsafe -o tests/suites/requirements.lock tests/suites/requirements.in

clean: ## remove everything that was built; keep the clusters' data in .dss
	@rm -rf .venv .venv-audit .venv-suites build dist report docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
