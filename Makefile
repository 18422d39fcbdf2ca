# SPDX-License-Identifier: MIT
# Thin names for tools/* and meson. Neither tools/demo nor tools/check needs make.
#   make                build build/bin/qcow and build/compat/qemu-img
#   make demo           convert a real disk four ways and back
#   make check          all tests (ARGS=--quick: under 3 minutes; ARGS=--long: hours)
#   make bench          qcowkit beside qemu-img on the same files
#   make fuzz           fuzz every target for SECONDS_EACH seconds
#   make hostile-peers  a table of verdicts on hostile images, ours beside QEMU's
#   make mutants        the engine broken on purpose, one way at a time: which test notices
#   make bench-write    writes beside qemu-img bench
#   make soak           a process that writes a million times, killed at random
#   make crash          crash states of every kind of write, judged (ARGS=--long: millions)
#   make crash-peers    the same workloads by qemu-io, side by side
#   make asan | tsan    unit tests under AddressSanitizer + UBSan | ThreadSanitizer
#   make install DESTDIR= PREFIX=/usr/local        make uninstall      make clean

PREFIX ?= /usr/local
DESTDIR ?=
ARGS ?=
SECONDS_EACH ?= 60
BUILD := build

all: $(BUILD)/build.ninja
	ninja -C $(BUILD)

$(BUILD)/build.ninja:
	@tools/packages build
	meson setup $(BUILD) --prefix=$(PREFIX)

demo:
	tools/demo $(ARGS)

check:
	tools/check $(ARGS)

bench: all
	@tools/packages tests
	bench/run $(ARGS)

fuzz:
	tools/fuzz $(SECONDS_EACH)

hostile-peers: all
	@tools/packages tests
	tests/images/peers.py $(ARGS)

mutants:
	@tools/packages tests
	tests/mutations/run $(ARGS)

bench-write: all
	@tools/packages tests
	bench/write $(ARGS)

soak:
	tools/check --only soak $(ARGS)

CRASH := build-check/gcc/tests/crash
crash-build:
	@tools/packages tests
	@test -f build-check/gcc/build.ninja || meson setup build-check/gcc -Dtests=true -Dabort_on_bug=true
	@ninja -C build-check/gcc tests/crash/crash tests/crash/crash_shim.so

crash: crash-build
	$(CRASH)/crash --shim $(CRASH)/crash_shim.so $(ARGS)

crash-peers: crash-build
	$(CRASH)/crash --peers --shim $(CRASH)/crash_shim.so $(ARGS)

asan:
	tools/check --only asan $(ARGS)

tsan:
	tools/check --only tsan $(ARGS)

# A prefix given here wins over the one the build folder was set up with.
install: all
	@test "$$(meson introspect $(BUILD) --buildoptions | \
		python3 -c 'import json,sys; print([o["value"] for o in json.load(sys.stdin) if o["name"] == "prefix"][0])')" \
		= "$(PREFIX)" || { meson configure $(BUILD) --prefix=$(PREFIX) && ninja -C $(BUILD); }
	DESTDIR='$(DESTDIR)' meson install -C $(BUILD) --no-rebuild

# Removes what the last install of this build folder listed.
uninstall:
	@test -f $(BUILD)/meson-logs/install-log.txt || { echo "nothing was installed from $(BUILD)"; exit 1; }
	@grep -v '^#' $(BUILD)/meson-logs/install-log.txt | sort -r | while read -r f; do \
		if [ -d "$$f" ] && [ ! -L "$$f" ]; then rmdir "$$f" 2>/dev/null || true; else rm -f "$$f"; fi; done

clean:
	rm -rf $(BUILD) build-check

.PHONY: all demo check bench fuzz hostile-peers mutants bench-write soak crash crash-build crash-peers asan tsan install uninstall clean
