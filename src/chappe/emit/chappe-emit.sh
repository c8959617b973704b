#!/bin/sh
# Tell a hub what a simulation does, with a POSIX shell and nothing else: one message is appended to a spool
# file, from where the agent of a site, or a later `chappe-emit drain`, brings it on. The arguments are those
# of chappe-emit, and chappe_emit.py describes the file. All calls from one process (a job's script) share
# a file, one after the other. The exit status is 0 whatever happens.

if [ -n "${KSH_VERSION-}${ZSH_VERSION-}" ] && (set -o posix) 2>/dev/null; then set -o posix; fi
LC_ALL=C
export LC_ALL
umask 077

usage() {
    cat <<'TEXT'
usage: chappe-emit.sh [--simulation UID] [--job UID] TYPE [NAME=VALUE ...]
       chappe-emit.sh new           print an id for a simulation
TYPE is simulation.started, simulation.ended, job.started, job.period, job.ended, job.fatal, command.failed,
metric (name=... value=... step=... time=...), heartbeat, log, custom.ANYTHING, or a code of libIGCM (1001).
TEXT
}

complain() {
    printf 'chappe-emit: %s\n' "$1" >&2
}

# Sets `uid`; no process where the kernel gives it.
new_uid() {
    uid=
    { read -r uid </proc/sys/kernel/random/uuid; } 2>/dev/null && return
    uid=$(uuidgen 2>/dev/null | tr 'A-F' 'a-f')
    [ -n "$uid" ] || uid=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n' |
        sed 's/^\(.\{8\}\)\(.\{4\}\).\(.\{3\}\).\(.\{3\}\)/\1-\2-4\3-8\4-/')
}

# Sets `text` to $1 as the inside of a JSON string.
escape() {
    text=$1
    case $text in
    *[\"\\]* | *[[:cntrl:]]*)
        return_mark=$(printf '\r')
        text=$(printf '%s\n' "$text" | tr '\001-\010\013\014\016-\037\177' '?' |
            sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/	/\\t/g' -e "s/$return_mark/\\\\r/g" -e '$!s/$/\\n/' | tr -d '\n')
        ;;
    esac
}

# Sets `type` and `code`: two names of one kind.
kind_of() {
    type=$1 code=$1
    case $1 in
    0000 | simulation.started) type=simulation.started code=0000 ;;
    0100 | simulation.ended) type=simulation.ended code=0100 ;;
    8888 | simulation.purged) type=simulation.purged code=8888 ;;
    1000 | job.started) type=job.started code=1000 ;;
    1001 | job.period) type=job.period code=1001 ;;
    1100 | job.ended) type=job.ended code=1100 ;;
    1900 | command.failed) type=command.failed code=1900 ;;
    1999 | job.fatal) type=job.fatal code=1999 ;;
    2000 | post.started) type=post.started code=2000 ;;
    2100 | post.ended) type=post.ended code=2100 ;;
    2900 | post.command_failed) type=post.command_failed code=2900 ;;
    2999 | post.fatal) type=post.fatal code=2999 ;;
    3000 | checker.started) type=checker.started code=3000 ;;
    3100 | checker.ended) type=checker.ended code=3100 ;;
    3900 | checker.command_failed) type=checker.command_failed code=3900 ;;
    3999 | checker.fatal) type=checker.fatal code=3999 ;;
    7000 | io) type=io code=7000 ;;
    7010 | accounting) type=accounting code=7010 ;;
    7011 | accounting.jobs) type=accounting.jobs code=7011 ;;
    7100 | metric.sets) type=metric.sets code=7100 ;;
    8000 | supervision.detect) type=supervision.detect code=8000 ;;
    8100 | supervision.format) type=supervision.format code=8100 ;;
    8200 | supervision.dispatch) type=supervision.dispatch code=8200 ;;
    *) code= ;;
    esac
}

# Sets `digest` to the sha256 of $1. Fails where no program can tell.
sha256() {
    digest=$(printf '%s' "$1" | sha256sum 2>/dev/null) ||
        digest=$(printf '%s' "$1" | shasum -a 256 2>/dev/null) ||
        digest=$(printf '%s' "$1" | openssl dgst -sha256 -r 2>/dev/null) || return 1
    digest=${digest%% *}
}

# Sets `host`, and `boot` and `ticks` of process $1, `-` where they cannot be known.
owner_of() {
    host= boot=- ticks=-
    { read -r host </proc/sys/kernel/hostname; } 2>/dev/null || host=$(uname -n)
    { read -r boot </proc/sys/kernel/random/boot_id; } 2>/dev/null || boot=-
    if { read -r stat <"/proc/$1/stat"; } 2>/dev/null; then
        # shellcheck disable=SC2086 # words are what is wanted
        set -- ${stat##*\) }
        ticks=${20}
    fi
}

held() {
    set -C
    echo "$$" >"$1"
    taken=$?
    set +C
    return "$taken"
}

# Takes the lock of the shared file: fails when another holds it for long, or died with it.
lock() {
    tries=0
    until held "$1" 2>/dev/null; do
        holder=
        { read -r holder <"$1"; } 2>/dev/null
        if [ -n "$holder" ] && ! kill -0 "$holder" 2>/dev/null; then return 1; fi
        tries=$((tries + 1))
        [ "$tries" -lt 50 ] && [ -d "$folder" ] || return 1
        sleep 0.01 2>/dev/null || sleep 1
    done
}

# Sets `stream`, `seq` and `prev` to what the file $1 ends with. Fails where its end is not whole.
resume() {
    line=$(tail -n 1 "$1" 2>/dev/null)
    case $line in
    "chappe-spool 1 "*)
        # shellcheck disable=SC2086
        set -- $line
        stream=$3 seq=0 prev=
        return
        ;;
    esac
    prev=${line%% *}
    message=${line#* }
    case $prev in
    *[!0-9a-f]* | "") return 1 ;;
    esac
    case $message in
    "{"*"}") ;;
    *) return 1 ;;
    esac
    stream=${message##*\"msgStream\":\"}
    stream=${stream%%\"*}
    seq=${message##*\"msgSeq\":}
    seq=${seq%%[!0-9]*}
    [ -n "$stream" ] && [ -n "$seq" ]
}

# Appends the message whose beginning is `head` and whose code is `code` to `file`.
append() {
    if [ ! -e "$file" ] || ! resume "$file"; then
        # A file of another name where the end of that one is damaged: nobody waits for a repair.
        new_uid
        stream=$uid seq=0 prev=
        [ ! -e "$file" ] || file=$folder/$stream.spool
        printf '%s\n' "chappe-spool 1 $stream $host $boot $parent $ticks agent" >>"$file" || return 1
    fi
    message="$head,\"msgStream\":\"$stream\",\"msgSeq\":$((seq + 1)),\"msgPrev\":\"$prev\"}"
    sha256 "$message" || return 1
    # What a full disk left of a line before this one ends with the first line feed.
    printf '\n%s\n' "$digest $message" >>"$file" || return 1
    case $code in
    ??00 | ?999 | 8888) dd if=/dev/null of="$file" conv=notrunc,fsync 2>/dev/null ;;
    esac
}

tell() {
    # Inside of a Job of Chappe: the first attempt bears the Job's name, and each other its own.
    simulation=${CHAPPE_EMIT_SIMULATION:-${CHAPPE_JOB_ID-}} job=${CHAPPE_EMIT_JOB:-${CHAPPE_JOB_ID-}}
    if [ -z "${CHAPPE_EMIT_JOB-}" ] && [ -n "$job" ] && [ "${CHAPPE_ATTEMPT:-1}" != 1 ]; then
        job=$job.$CHAPPE_ATTEMPT
    fi
    while :; do
        case ${1-} in
        --simulation=*) simulation=${1#*=} ;;
        --job=*) job=${1#*=} ;;
        --simulation) simulation=${2-} && shift ;;
        --job) job=${2-} && shift ;;
        -*) usage >&2 && return ;;
        *) break ;;
        esac
        shift || return
    done
    [ -n "${1-}" ] || { usage >&2 && return; }
    kind_of "$1"
    shift
    new_uid
    at=$(date +%Y-%m-%dT%H:%M:%S.%N%z 2>/dev/null)
    case $at in
    *.[0-9]*[+-]*) ;;
    *) at=$(date -u +%Y-%m-%dT%H:%M:%S+0000) ;; # no nanoseconds here
    esac
    escape "$type"
    head="{\"msgApplication\":\"monitoring\",\"msgProducer\":\"chappe\",\"msgProducerVersion\":\"1\",\"msgType\":\"$text\""
    [ -z "$code" ] || head="$head,\"msgCode\":\"$code\""
    head="$head,\"msgUID\":\"$uid\",\"msgTimestamp\":\"$at\""
    if [ -n "$simulation" ]; then escape "$simulation" && head="$head,\"simuid\":\"$text\""; fi
    if [ -n "$job" ]; then escape "$job" && head="$head,\"jobuid\":\"$text\""; fi
    for pair; do
        case $pair in
        [A-Za-z_]*=*) ;;
        *)
            complain "$pair is not NAME=VALUE, and is left out"
            continue
            ;;
        esac
        escape "${pair%%=*}" && name=$text
        case $name in
        msg* | simuid | jobuid) continue ;;
        esac
        escape "${pair#*=}" && head="$head,\"$name\":\"$text\""
    done

    folder=${CHAPPE_EMIT_SPOOL:-${CHAPPE_SPOOL:-${XDG_STATE_HOME:-$HOME/.local/state}/chappe/spool}}
    [ -d "$folder" ] || mkdir -p "$folder" || return
    owner_of "$parent"
    file=$folder/$host.$parent.$ticks.spool
    if lock "$file.lock"; then
        locked=$file.lock
    else
        file=$folder/$uid.spool locked=
    fi
    append || complain "the message cannot be written to $file"
    [ -z "$locked" ] || rm -f "$locked"
}

parent=$PPID
case ${1-} in
"" | -h | --help | help)
    usage
    exit 0
    ;;
new)
    new_uid
    printf '%s\n' "$uid"
    exit 0
    ;;
drain | copy)
    complain "$1 is a command of the Python program"
    exit 0
    ;;
esac
# In the background, so that a disk that hangs holds this process, and the simulation, for so long only.
trap 'complain "it takes too long, and is left alone"; exit 0' ALRM
tell "$@" &
work=$!
(
    trap 'kill "$nap"; exit' TERM
    sleep "${CHAPPE_EMIT_LIMIT_S:-5}" &
    nap=$!
    wait "$nap"
    kill -s ALRM "$$"
) >/dev/null 2>&1 &
watch=$!
wait "$work"
kill "$watch" 2>/dev/null
exit 0
