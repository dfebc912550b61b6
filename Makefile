# Two commands matter: `make demo` and `make test`. Both install what a fresh Debian or Ubuntu machine
# with a Rust toolchain lacks, and say what they install.

.PHONY: help deps build demo test sweep lint fmt bench clean

help: ## What there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

deps: ## Install what is missing (PostgreSQL's server)
	@bash scripts/deps.sh

build: ## Build the program
	cargo build

demo: deps ## Lose a region on this machine, recover, measure it, lead back
	cargo build
	./target/debug/muster demo

test: deps ## Every test
	@bash scripts/test.sh

sweep: ## Kill the program at every write to its journal and at random, and count every effect
	cargo test --no-default-features --test it -- sweep::the_whole_sweep --ignored --nocapture --test-threads=1

lint: ## Formatting and clippy
	cargo fmt --all --check
	cargo clippy --all-targets -- -D warnings

fmt: ## Format the code
	cargo fmt --all

bench: ## The benches of the hot paths (they need neither the cloud nor the lab)
	cargo bench --no-default-features

clean: ## Remove what was built
	cargo clean
