# Two commands matter: `make demo` and `make test`. Both install what a fresh Debian or Ubuntu machine
# with a Rust toolchain lacks, and say what they install.

.PHONY: help deps build demo test soak sweep sim sim-bugs lint fmt bench bench-dns bench-engine bench-repository bench-postgres bench-replica bench-buckets fuzz clean

help: ## What there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

deps: ## Install what is missing (PostgreSQL's server, PgBouncer; Python packages into .venv)
	@bash scripts/deps.sh

build: ## Build the program
	cargo build

demo: ## Lose a region on this machine, recover, measure it, lead back
	@bash scripts/deps.sh demo
	cargo build
	./target/debug/muster demo

test: deps ## Every test
	@bash scripts/test.sh

sweep: ## Kill the program at every write to its journal and at random, and count every effect
	cargo test --no-default-features --test it -- sweep::the_whole_sweep --ignored --nocapture --test-threads=1

soak: deps ## Hundreds of switchovers, killed primaries and replica checks under load, on real clusters (SOAK=200)
	SOAK=$(or $(SOAK),200) cargo test --no-default-features --test it -- --ignored soak:: --nocapture --test-threads=1

SIM := cargo test --profile sim --no-default-features --lib

sim: ## Simulated worlds: SEEDS=10000, FROM=1; SEED=1234 replays one, with all that happens in it
	@$(SIM) --no-run
	@if [ -z "$(SEED)" ]; then export SEEDS=$(or $(SEEDS),10000); fi; \
	SEED=$(SEED) FROM=$(FROM) $(SIM) --quiet -- --exact --nocapture engine::sim::seeds::nothing_is_lost_and_nothing_is_done_twice

sim-bugs: ## Defects planted in engine and journal: each must be found within 2,000 seeds
	@$(SIM) --no-run
	@BUGS=all $(SIM) --quiet -- --exact --nocapture engine::sim::seeds::every_planted_defect_is_found

fuzz: ## Fuzzers for every parser of stored bytes, a minute each (needs `cargo install cargo-fuzz`; SECONDS=600 for more)
	@cp -n Cargo.lock fuzz/Cargo.lock; set -e; for target in fuzz/fuzz_targets/*.rs; do name=$$(basename $$target .rs); \
	mkdir -p fuzz/corpus/$$name; echo "$$name:"; \
	cargo fuzz run -s none $$name fuzz/corpus/$$name fuzz/seeds/$$name -- -max_total_time=$(or $(SECONDS),60) -max_len=65536 -print_final_stats=1; done

lint: ## Formatting and clippy
	cargo fmt --all --check
	cargo clippy --all-targets -- -D warnings

fmt: ## Format the code
	cargo fmt --all

bench: ## The benches of the hot paths (they need neither the cloud nor the lab)
	cargo bench --no-default-features

bench-dns: ## A change of DNS until every authoritative server has it: BIND, Knot, and the API of Route 53 at an emulator
	@bash scripts/deps.sh
	cargo bench --no-default-features --features aws --bench dns

bench-engine: ## The engine and its journal: steps a second, recovery, memory, schedules (PARTS="steps list" for some)
	cargo bench --no-default-features --bench engine -- $(PARTS)

bench-repository: ## The backup repository beside restic, Borg and rclone, and its goals (ARGS="--rounds 1 --scale 0.05")
	cargo build --release
	@bash scripts/deps.sh
	benches/peers/artifacts $(ARGS)

bench-postgres: ## Backup and restore of a PostgreSQL cluster beside pgBackRest and pg_basebackup
	cargo build --release
	@bash scripts/deps.sh
	benches/peers/postgres $(ARGS)

bench-replica: ## A replica compared with its primary, beside reladiff and a bare COPY (ARGS="--rows 1000000")
	cargo build --release
	@bash scripts/deps.sh
	benches/peers/replica $(ARGS)

bench-buckets: ## Two buckets compared as sets, beside rclone check, with memory (ARGS="--sizes 10000 --rounds 1")
	cargo build --release
	@bash scripts/deps.sh
	benches/peers/buckets $(ARGS)

clean: ## Remove what was built
	cargo clean
