# shellcheck shell=bash
# How the proofs tell what they do: sourced by what runs in a new Debian.
#
#   attempt WHAT COMMAND...   runs it, and goes on if it fails
#   verdict                   ends with all that failed

script=${script:-$(basename "$0" .sh)}
failed=

attempt() {
    local what=$1 start=$SECONDS status=0
    shift
    echo "$script: $what"
    "$@" </dev/null || status=$?
    echo "$script: $what: exit $status after $((SECONDS - start)) s"
    [ "$status" = 0 ] || failed+=" ($what)"
}

verdict() {
    [ -z "$failed" ] || { echo "$script: failed:$failed"; exit 1; }
    echo "$script: all passed"
}
