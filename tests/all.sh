#!/usr/bin/env bash
# Everything that is tested, from a machine with nothing installed: `make test`. Goes on after a
# failure, and ends with a table. Each step's output is also in target/test/STEP.log. FULL=1 runs all
# scenarios on each kernel, not only on the newest, and with and without a fast path, not only those that
# are marked `both_lanes`.
# shellcheck disable=SC2317 # steps are called by name
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=tests/setup/lib.sh
source tests/setup/lib.sh
need_root "make network namespaces"

export CARGO_TERM_COLOR=never
target=${CARGO_TARGET_DIR:-target}
binary=$target/release/ipipou
vm_cache=${IPIPOU_VM_CACHE:-target/vm}
logs=target/test
mkdir -p "$logs"
rm -f "$logs"/*.log
summary=$logs/summary
: >"$summary"

# Adds up what cargo's and pytest's last lines say: "12 passed, 3 skipped".
counts() { # LOG
    grep -hE '^test result: |^(=+ )?[0-9]+ (passed|failed|skipped|error).* in [0-9.]+s' "$1" |
        grep -oE '[0-9]+ (passed|failed|skipped|ignored|deselected|errors?|xfailed|rerun)' |
        awk '$1 { sum[$2] += $1 }
            END { for (word in sum) printf "%s%s %s", n++ ? ", " : "", sum[word], word }' || true
}

step() { # NAME COMMAND...
    local name=$1 log=$logs/${1// /-}.log verdict=ok started=$SECONDS status=0
    shift
    echo "== $name"
    "$@" 2>&1 | tee -i "$log" || status=$?
    case $status in
    0) ;;
    77) verdict=skipped ;;
    *) verdict=FAILED ;;
    esac
    printf '%-20s %-7s %5d s  %s\n' "$name" "$verdict" "$((SECONDS - started))" \
        "$(counts "$log")" >>"$summary"
    [[ $verdict != FAILED ]]
}

# The steps that were started, each the number of its process group. Waiting for them, this shell
# hears a signal at once; the end of it is the end of all of them.
jobs=()
start() { # COMMAND...
    set -m
    { "$@"; } </dev/null &
    set +m
    jobs+=($!)
}

now() { # COMMAND...
    start "$@"
    wait "${jobs[-1]}"
}

# A step beside others, its lines told apart; whether it failed is in the summary.
beside() { # NAME COMMAND...
    { step "$@" || true; } | (trap '' INT && sed -u "s/^/$1 | /")
}

# Ends a part that hangs; the table says then that it did not end. (A machine has its own limit.)
limit() { # MINUTES JOB
    local until=$((SECONDS + $1 * 60)) signal
    while kill -0 -- "-$2" 2>/dev/null; do
        if ((SECONDS > until)); then
            for signal in INT KILL; do
                as_root kill "-$signal" -- "-$2" 2>/dev/null || true
                sleep 20
            done
        fi
        sleep 1
    done
}

end_jobs() {
    trap '' INT TERM HUP
    local signal job tries left
    # Interrupted, pytest takes its hosts down and apt its locks; what does not listen is killed.
    for signal in INT TERM KILL; do
        for ((tries = 0; tries < 100; tries++)); do
            left=()
            for job in "${jobs[@]}"; do
                # It may be root's, and is there all the same.
                [[ $(LC_ALL=C kill -0 -- "-$job" 2>&1) == *'No such process'* ]] || left+=("-$job")
            done
            jobs=("${left[@]#-}")
            ((${#left[@]})) || return 0
            ((tries)) || as_root kill "-$signal" -- "${left[@]}" 2>/dev/null || true
            sleep 0.1
        done
    done
}
trap end_jobs EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# What did not pass at once, a line each, by what cargo and pytest say of it.
failures() {
    local log
    for log in "$logs"/*.log; do
        grep -aE '^(FAILED|ERROR|RERUN) |^test .* FAILED$' "$log" |
            sed "s/^/$(basename "$log" .log): /" || true
    done
}

# A test that failed gets a second try (--reruns), which is shown in the table: several emulated
# machines on two processors stand still now and then, longer than any wait that is worth the name.
# More than this many, of all directories and kernels together, are a failure.
second_tries=2

finish() {
    local rows tries
    tries=$(cat "$logs"/*.log | grep -acE '^RERUN ' || true)
    ((tries <= second_tries)) ||
        printf '%-20s FAILED  %d tests needed a second try, %d may\n' "second tries" "$tries" \
            "$second_tries" >>"$summary"
    rows=$(<"$summary") # what is ended now did not fail by itself
    end_jobs
    printf '\n== make test on Linux %s, %s CPUs, %d s\n%s\n' \
        "$(uname -r)" "$(nproc)" "$SECONDS" "$rows"
    failures # last: of a long log often only the end is kept
    if grep -q FAILED <<<"$rows"; then
        echo "make test: FAILED; the logs are in $logs"
        exit 1
    fi
    echo "make test: passed"
    exit
}

# Asks for a password now, not out of a part in the background, and keeps it.
stay_root() {
    while sudo -n true; do
        sleep 60
    done
}
if ((EUID != 0)); then
    sudo true
    start stay_root
fi

# The programs under test, and the unit and property tests; most of the time is the compiler's.
now step packages tests/setup/packages.sh build test fuzz || finish
now step rust tests/setup/rust.sh || finish
# Kernels and root file system: minutes, beside the compiler.
machines() { step machines tests/vm/prepare.sh >/dev/null; }
start machines
machines=${jobs[-1]}
# What a newcomer does, on machines that have nothing. Much of it waits, for archives and disks. It
# yields to nobody: one of the demonstrations runs in an emulated machine, which would stand still behind
# two others. What is tried is the commands: the compiler need not take its time.
quick=(env CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off
    CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16)
bares=()
bare() { # NAME SUITE WHO DATAPATH
    start beside "bare $1" "${quick[@]}" tests/setup/bare.sh "${@:2}"
    bares+=("${jobs[-1]}")
    start limit 36 "${jobs[-1]}"
}
bare "12 root" bookworm root kernel
now step build cargo build --release --locked || finish # the emulated machines wait for it, so one at a time
bare "13 user" trixie user tun

pytest=(-q -rsfER --reruns 1 --durations 30)
[[ ! ${FULL:-} ]] || pytest+=(--lanes "auto,off")

# Beside each other, as the one mostly compiles and the other mostly waits. pytest comes from the
# distribution, as its other modules do.
netns=(env IPIPOU_BINARY="$PWD/$binary" PYTHONDONTWRITEBYTECODE=1)
[[ $binary != /* ]] || netns[1]=IPIPOU_BINARY=$binary
start beside namespaces as_root "${netns[@]}" \
    /usr/bin/python3 -m pytest "${pytest[@]}" -p no:cacheprovider tests/netns
namespaces=${jobs[-1]}
start limit 40 "$namespaces"
# They play other users, root among them.
start beside setup as_root "${netns[@]}" \
    /usr/bin/python3 -m pytest "${pytest[@]}" -p no:cacheprovider tests/setup
setup=${jobs[-1]}
# The programs of the fast path, on frames: only root may load them.
fast_path() {
    local executable
    executable=$(cargo test --locked --lib --no-run --message-format json |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
    as_root "$executable" --ignored bpf::
}
# Scenarios and services on stock kernels: all on the newest; on the others the scenarios that are marked
# `each_kernel`, those that are marked `both_lanes` with a fast path and the rest without one, or with FULL=1
# all, too. A scenario waits a lot, so parts run beside each other from the start, and the compiler yields to
# them; the services follow the scenarios of the others, which are fewer.
scenarios() { # KERNEL ARGUMENT...
    beside "$1" tests/vm/run.sh "$1" --binary "$binary" -- "${pytest[@]}" "${@:2}"
}
services() { # KERNEL
    beside "$1 systemd" tests/vm/run.sh "$1" --binary "$binary" --systemd -- "${pytest[@]}"
}
others_and_services() {
    local kernel
    for kernel in "${others[@]}"; do
        if [[ ${FULL:-} ]]; then
            scenarios "$kernel"
            services "$kernel"
        else
            scenarios "$kernel" -m each_kernel --lanes one
        fi
    done
    services "$newest"
}
wait "$machines" || { cat "$logs/machines.log" && finish; }
mapfile -t kernels <"$vm_cache/kernels"
newest=${kernels[-1]} others=("${kernels[@]::${#kernels[@]}-1}")
expected=(namespaces setup cargo-test fast-path fuzz "bare 12 root" "bare 13 user" "${kernels[@]}"
    "$newest systemd")
[[ ! ${FULL:-} ]] || expected+=("${others[@]/%/ systemd}")
start scenarios "$newest"
guests=("${jobs[-1]}")
start others_and_services
guests+=("${jobs[-1]}")
for part in "cargo-test nice -n 5 cargo test --locked --no-fail-fast" "fast-path fast_path" \
    "fuzz nice -n 5 tests/setup/fuzz.sh 3"; do
    # shellcheck disable=SC2086 # words
    start beside $part
    cargo=${jobs[-1]}
    start limit 36 "$cargo"
    wait "$cargo" || true
done
wait "$setup" "$namespaces" "${guests[@]}" "${bares[@]}" || true
for name in "${expected[@]}"; do
    grep -qF "$(printf '%-20s ' "$name")" "$summary" || echo "$name FAILED: did not end" >>"$summary"
done
finish
