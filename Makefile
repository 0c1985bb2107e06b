# make run   one clean and one infected message through a real clamsmtpd; stays up until Ctrl-C
# make test  every check and every test
# make bench what mail costs, beside the original, its best case, no proxy and clamd alone: 20 minutes on
#            two cores that do nothing else; BENCH="--quick" takes two or three, BENCH="--help" tells of other options
# make soak  20,000 numbered messages, a twentieth infected, while scanners, next hop, workers and daemon are killed at
#            random; then the reckoning: some 10 minutes on two cores; SOAK="--messages 600" takes one,
#            SOAK="--seed N" repeats one, SOAK="--help" tells of other options
# make fuzz  ten targets of Atheris, a minute in all; FUZZ="--seconds 3600 relay body" takes an hour for two of them
# make deb   the Debian package, built in a clean bookworm (debootstrap, as root), in .build/deb
# make deb-test  it takes over from clamsmtp 1.10, serves, and leaves, in clean systems: a minute
# make container-test  the steps of the Containerfile, one by one, in clean systems: half a minute
# make docs  the documentation, as HTML in .build/docs and as manual pages in man/; before that, its parts that come from
#            the code's tables and from tests
# make screens what clamsmtpctl shows, for the documentation, from a real run; needs root and tmux
# make howto the how-tos of the documentation, each with the real server

PYTHON = .venv/bin/python

.PHONY: run test bench soak fuzz deb deb-test container-test docs howto screens lint unit integration clean

run:
	@scripts/setup run
	@$(PYTHON) -m tools.demo

test:
	@scripts/setup test
	@scripts/check

bench:
	@scripts/setup test
	@$(PYTHON) bench/compare.py $(BENCH)

soak:
	@scripts/setup test
	@$(PYTHON) -m soak $(SOAK)

fuzz:
	@scripts/setup python
	@$(PYTHON) -m fuzz $(FUZZ)

deb:
	@packaging/build-deb

deb-test: deb
	@packaging/test-deb

container-test:
	@packaging/test-container

docs:
	@scripts/setup python
	@$(PYTHON) -m tools.generate_docs
	@$(PYTHON) -m tools.build_docs

screens:
	@scripts/setup test
	@$(PYTHON) -m tools.screens

howto:
	@scripts/setup test
	@$(PYTHON) -m pytest tests/integration/test_howto_*.py

lint:
	@scripts/setup python
	@scripts/check lint

unit:
	@scripts/setup python
	@$(PYTHON) -m pytest -n auto tests/unit

integration:
	@scripts/setup test
	@$(PYTHON) -m pytest -n auto tests/integration

clean:
	rm -rf .venv .build .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
