#!/usr/bin/env bash
# run.sh RUN [arguments of t2ir1_ray.train]: begin the run of the folder RUN, or go on with it.
# The one entry of Ray jobs, pods, batch jobs and containers; in the image it is called t2ir1-run.
#
# T2IR1_RETRIES=N: a run that fails (a node was taken away) goes on by itself, N times at most. Bad settings (exit code 2)
# and a stop that was asked for are final.
set -euo pipefail
if (($# == 0)); then
    sed -n '2,4s/^# //p' "$0" >&2
    exit 2
fi
run=$1
shift

choose() { # what to start, anew each time: the folder may have come into being
    arguments=(journal.root="$(dirname "$run")" journal.name="$(basename "$run")" "$@")
    if [[ -s $run/config.yaml ]]; then
        arguments=(--resume "$run" "${arguments[@]}")
    fi
}

if ((${T2IR1_RETRIES:-0} == 0)); then
    choose "$@"
    exec python -m t2ir1_ray.train "${arguments[@]}" # the signals are the driver's
fi

asked=
trap 'asked=1; kill -TERM "$driver" 2> /dev/null || true' TERM INT
for ((attempt = 0; attempt <= T2IR1_RETRIES; attempt++)); do
    choose "$@"
    python -m t2ir1_ray.train "${arguments[@]}" &
    driver=$!
    while :; do # a trap ends a wait
        code=0
        wait "$driver" || code=$?
        kill -0 "$driver" 2> /dev/null || break
    done
    if ((code == 0 || code == 2)) || [[ $asked ]]; then
        break
    fi
    echo "run.sh: ended with $code, attempt $((attempt + 1)) of $((T2IR1_RETRIES + 1))" >&2
    sleep "${T2IR1_RETRY_WAIT_S:-60}"
done
exit "$code"
