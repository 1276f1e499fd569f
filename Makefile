# make demo    try it: builds and installs the package, trains a small LoRA on a CPU
# make test    fresh environment, build, lints, all tests
# make check   the same in the environment at hand
# make fuzz    the properties of what reads strangers' input, on many more cases (CASES=100000)
# make real    the original and this one with the real Musubi Tuner on a CPU (MUSUBI_TUNER_DIR=/path/to/clone)
# make bench   against the original, into BENCHMARKS.md (ONLY=imports,dataset; MUSUBI_TUNER_DIR=… for those that need it)
# make provoke MUSUBI_TUNER_DIR=…    behind make real: the failures of the real scripts anew, and the reasons told for them

PYTHON ?= python3
VENV := .venv
DEMO_VENV := .venv-demo
REAL_VENV := .venv-real
BENCH_VENV := .venv-bench
ORIGINAL_VENV := .venv-bench-original
CASES ?= 20000
BIN := $(VENV)/bin

.PHONY: demo test env build check fuzz real provoke bench clean tools
.DEFAULT_GOAL := demo

tools:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.10 or newer (https://www.python.org/downloads, or: apt install python3), or name one with make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) is older than 3.10: name a newer one with make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make environments: install its venv module (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust, 1.88 or newer (https://rustup.rs)"; exit 1; }
	@cargo --version | $(PYTHON) -c 'import re, sys; sys.exit(tuple(map(int, re.findall(r"\d+", input())[:2])) < (1, 88))' || { echo "$$(cargo --version) is too old: install Rust 1.88 or newer (https://rustup.rs)"; exit 1; }
	@command -v cc >/dev/null || { echo "cc is missing: install a C compiler (Debian, Ubuntu: apt install build-essential; macOS: xcode-select --install)"; exit 1; }

demo: tools
	@test -x $(DEMO_VENV)/bin/python || $(PYTHON) -m venv $(DEMO_VENV)
	@echo "building and installing the package, some minutes the first time"
	$(DEMO_VENV)/bin/python -m pip install --quiet --disable-pip-version-check '.[demo]'
	$(DEMO_VENV)/bin/python -m musubitraining.demo

test: tools
	rm -rf $(VENV)
	$(MAKE) check

env: tools
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev

build: env
	$(BIN)/maturin develop --quiet

check: build
	cargo fmt --check
	cargo clippy --quiet --all-targets -- --deny warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml musubitraining._native
	cargo test --quiet
	$(BIN)/pytest

fuzz: tools
	PROPTEST_CASES=$(CASES) cargo test properties

real: tools
	@test -n "$(MUSUBI_TUNER_DIR)" || { echo "make real: say where Musubi Tuner lies: make real MUSUBI_TUNER_DIR=/path/to/clone (git clone -b v0.3.4 https://github.com/kohya-ss/musubi-tuner)"; exit 1; }
	@test -f "$(MUSUBI_TUNER_DIR)/zimage_train_network.py" -a -d "$(MUSUBI_TUNER_DIR)/src/musubi_tuner" || { echo "make real: $(MUSUBI_TUNER_DIR) is no clone of Musubi Tuner: zimage_train_network.py or src/musubi_tuner is missing"; exit 1; }
	@$(MAKE) --no-print-directory $(REAL_VENV)/ready
	$(REAL_VENV)/bin/python real/compare.py "$(MUSUBI_TUNER_DIR)" . target/real
	PYTHONPATH=target/real/library-ours $(REAL_VENV)/bin/python real/options.py "$(MUSUBI_TUNER_DIR)" target/real
	PYTHONPATH=target/real/library-ours $(REAL_VENV)/bin/python real/success.py "$(MUSUBI_TUNER_DIR)" target/real
	PYTHONPATH=target/real/library-ours $(REAL_VENV)/bin/python real/seen.py "$(MUSUBI_TUNER_DIR)" target/real
	PYTHONPATH=target/real/library-ours $(REAL_VENV)/bin/python real/convert.py "$(MUSUBI_TUNER_DIR)" target/real

provoke:
	@test -d target/real/small -a -d target/real/library-ours || { echo "make provoke: run make real first"; exit 1; }
	PYTHONPATH=target/real/library-ours $(REAL_VENV)/bin/python real/provoke.py "$(MUSUBI_TUNER_DIR)" target/real

bench: tools $(ORIGINAL_VENV)/ready $(if $(MUSUBI_TUNER_DIR),$(REAL_VENV)/ready)
	@test -x $(BENCH_VENV)/bin/python || $(PYTHON) -m venv $(BENCH_VENV)
	rm -rf target/bench/wheel
	$(BENCH_VENV)/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir target/bench/wheel .
	$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall target/bench/wheel/*.whl
	$(BENCH_VENV)/bin/python benches/main.py --only "$(ONLY)" --wheel target/bench/wheel/*.whl \
		--ours $(BENCH_VENV)/bin/python --original $(ORIGINAL_VENV)/bin/python \
		$(if $(MUSUBI_TUNER_DIR),--musubi "$(MUSUBI_TUNER_DIR)" --real $(REAL_VENV)/bin/python)

# Its exact pins cannot all be installed on every Python: only what it imports.
$(ORIGINAL_VENV)/ready:
	$(PYTHON) -m venv --clear $(ORIGINAL_VENV)
	$(ORIGINAL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check requests 'tomli; python_version < "3.11"'
	$(ORIGINAL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps TechTrash-MusubiTraining==0.0.11
	@touch $@

# PyTorch and what Musubi Tuner needs with it: some 7 GB, once
$(REAL_VENV)/ready: real/requirements.txt
	$(PYTHON) -m venv $(REAL_VENV)
	$(REAL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

clean:
	rm -rf $(VENV) $(DEMO_VENV) $(REAL_VENV) $(BENCH_VENV) $(ORIGINAL_VENV) target musubitraining-demo
