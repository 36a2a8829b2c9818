#!/bin/sh
# RUSTC_WORKSPACE_WRAPPER of fuzz.sh: the compiler, with LLVM's counters for libFuzzer
# (https://clang.llvm.org/docs/SanitizerCoverage.html) in what it makes.
exec "$@" --cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares
