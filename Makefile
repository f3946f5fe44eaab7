# The commands that a newcomer needs; CMake does the work.
BUILD ?= build
PREFIX ?= /usr/local
CMAKE_FLAGS ?=
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)

.PHONY: all build run test sanitize install format check-format dependencies clean

all: build

dependencies:
	@scripts/install-dependencies

build: dependencies
	cmake -S . -B $(BUILD) -DCMAKE_INSTALL_PREFIX=$(PREFIX) $(CMAKE_FLAGS)
	cmake --build $(BUILD) --parallel $(JOBS)

# The shipped model continues a text and answers a question, with exact and compressed caches.
run: build
	$(BUILD)/turbokv demo

test: build
	cd $(BUILD) && ctest --output-on-failure --parallel $(JOBS)

# The tests again, under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: dependencies
	cmake -S . -B $(BUILD)-sanitize -DTKV_SANITIZE=address,undefined $(CMAKE_FLAGS)
	cmake --build $(BUILD)-sanitize --parallel $(JOBS)
	cd $(BUILD)-sanitize && ctest --output-on-failure --parallel $(JOBS)

install: build
	cmake --install $(BUILD)

format:
	git ls-files '*.c' '*.h' | xargs clang-format -i

check-format:
	@if command -v clang-format >/dev/null; then \
	    git ls-files '*.c' '*.h' | xargs clang-format --dry-run --Werror; \
	else echo "check-format: skipped, clang-format is not installed"; fi

clean:
	rm -rf $(BUILD) $(BUILD)-sanitize
