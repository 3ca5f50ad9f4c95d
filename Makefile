# SQL is checked against the committed metadata: a build needs no database.
export SQLX_OFFLINE := true
# What no program of the workspace turns on, and is to be tested all the same.
EVENTS := --features events/contract,events/otel

# What cargo-fuzz asks of the compiler, but for its sanitizer, which needs a nightly one. A target is named
# so that build scripts are left out of it.
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
SANCOV = --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares

# The release's archive: from the mirrors that apt uses here, which keep it, or from the project.
PGBOUNCER := 1.24.1
PGBOUNCER_SHA256 := da72a3aba13072876d055a3e58dd4aba4a5de4ed6148e73033185245598fd3e0
PGBOUNCER_URLS = $(patsubst %,%/pool/main/p/pgbouncer/pgbouncer_$(PGBOUNCER).orig.tar.gz,$(patsubst %/,%,$(APT_MIRRORS))) \
  https://www.pgbouncer.org/downloads/files/$(PGBOUNCER)/pgbouncer-$(PGBOUNCER).tar.gz
APT_MIRRORS = $(sort $(shell apt-get indextargets --format '$$(REPO_URI)' 'Created-By: Packages' 2>/dev/null))

.PHONY: help install demo test bench bench-api bench-relay bench-mail check fmt fuzz compose-check deploy-check sqlx \
  consumers contract contract-check

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: ## Install what is missing (says what, before it does)
	@demo/install

demo: install ## Run the whole pipeline; ARGS=--once ends by itself
	cargo build --release --package orders --package relay --package demo --bins
	@target/release/demo $(ARGS)

test: ## Run every test against a real PostgreSQL, a real Kafka, a real PgBouncer and a real Prometheus
	@demo/install test
	@$(MAKE) --no-print-directory consumers target/pgbouncer/pgbouncer
	cargo build --workspace --bins $(EVENTS)
	target/debug/demo services -- cargo test --workspace $(EVENTS)

consumers: target/consumers/python/installed target/consumers/java/built target/consumers/readback/built ## Build the consumers in Python and Java

target/consumers/python/installed: examples/consumer-python/requirements.txt
	python3 -m venv target/consumers/python
	target/consumers/python/bin/pip install --quiet --only-binary :all: --requirement $<
	@touch $@

target/consumers/java/built: examples/consumer-java/pom.xml examples/consumer-java/src/Consumer.java
target/consumers/readback/built: contract/readback/pom.xml contract/readback/src/Readback.java
target/consumers/java/built target/consumers/readback/built:
	mvn --quiet --batch-mode --file $< process-classes
	@touch $@

# Debian 12 packages one that knows no named prepared statements. Without TLS and c-ares: the tests use neither.
target/pgbouncer/pgbouncer: target/pgbouncer/pgbouncer-$(PGBOUNCER).tar.gz
	cd target/pgbouncer && tar xzf $(<F) && cd pgbouncer-$(PGBOUNCER) && \
	  ./configure --without-openssl --without-cares >../log 2>&1 && $(MAKE) pgbouncer >>../log 2>&1 || { tail -n 20 ../log; exit 1; }
	mv target/pgbouncer/pgbouncer-$(PGBOUNCER)/pgbouncer $@
	@rm -r target/pgbouncer/pgbouncer-$(PGBOUNCER)

target/pgbouncer/pgbouncer-$(PGBOUNCER).tar.gz:
	mkdir -p $(@D)
	for url in $(PGBOUNCER_URLS); do \
	  curl --fail --silent --show-error --location --connect-timeout 20 --retry 2 --output $@.part $$url && break; \
	done
	echo '$(PGBOUNCER_SHA256)  $@.part' | $$(command -v sha256sum || echo shasum -a 256) -c -
	mv $@.part $@

contract: ## Write contract/ anew from the types; refuses what breaks a consumer of v1
	cargo run --package events --features contract --example contract

contract-check: ## Read contract/asyncapi.json with the AsyncAPI parser
	@if command -v npm >/dev/null; then cd contract/check && npm ci --silent --ignore-scripts && node check.mjs; \
	else echo 'contract-check: SKIPPED, it needs Node'; fi

bench: bench-api bench-relay ## Measure the API and the relay, each beside its limits; ARGS=--quick for a first look

bench-api: ## The API beside pgbench, on one PostgreSQL
	@demo/install bench
	cargo bench --package orders --bench api -- $(ARGS)

bench-relay: ## The relay beside a bare producer loop and a plain poller, on one PostgreSQL and one Kafka
	@demo/install bench
	cargo build --release --package relay --bin relay
	cargo build --release --package orders --example bare_jemalloc
	cargo bench --package orders --bench relay -- $(ARGS)

bench-mail: install ## Measure the mail stage against a server on this machine; ARGS=--orders=2000 for a first look
	cargo build --release --package orders --package relay --bins
	cargo bench --package orders --bench mail -- $(ARGS)

check: install ## Format, lints and documentation, warnings denied
	cargo fmt --all --check
	cargo clippy --workspace --all-targets $(EVENTS) -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps $(EVENTS)

fmt: ## Format the code
	cargo fmt --all

fuzz: ## Let a fuzzer try the parsers of keys and bodies, for FUZZ_SECONDS each
	@demo/install fuzz
	cd fuzz && CARGO_TARGET_DIR=../target/fuzz RUSTFLAGS='$(SANCOV)' cargo build --locked --bins --target $(HOST)
	for target in body idempotency_key; do \
	  mkdir -p target/fuzz/corpus/$$target && \
	  target/fuzz/$(HOST)/debug/$$target -max_total_time=$${FUZZ_SECONDS:-60} -print_final_stats=1 \
	    -artifact_prefix=target/fuzz/ target/fuzz/corpus/$$target || exit 1; \
	done

compose-check: ## Read docker-compose.yml with the parser of Docker Compose
	@if command -v go >/dev/null; then cd demo/compose-check && go vet . && go run . ../../docker-compose.yml; \
	else echo 'compose-check: SKIPPED, it needs Go'; fi

deploy-check: ## Check deploy/ with promtool: configuration, alert rules and their tests
	@demo/install test
	cd deploy && promtool check config prometheus.yml && promtool test rules alerts_test.yml

sqlx: ## Write .sqlx anew after a change of SQL; needs sqlx-cli and DATABASE_URL
	SQLX_OFFLINE=false cargo sqlx database setup
	SQLX_OFFLINE=false cargo sqlx prepare --workspace
