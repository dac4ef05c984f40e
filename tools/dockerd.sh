#!/bin/sh
# Find or start a Docker Engine for tests.
#
#   tools/dockerd.sh start DIR   print the address (unix://...) of an engine that responds
#   tools/dockerd.sh stop  DIR   end the engine that `start DIR` started, if it did
#
# start: if `docker info` succeeds, that engine is used and not changed. Otherwise (as
# root) docker.io is installed by apt if dockerd is missing, and dockerd is started with
# all its files under DIR. Only the address is written to stdout, so that
#
#   DOCKER_HOST=$(tools/dockerd.sh start DIR) && export DOCKER_HOST
#
# works. Progress is written to stderr, and the daemon's log to DIR/dockerd.log.
# DOCKERD_DEADLINE_S (60) limits the wait for the first response, in seconds;
# DOCKERD_FLAGS is appended to dockerd's command line (for example
# --storage-driver=vfs --iptables=false).
set -eu

say() { echo "dockerd.sh: $*" >&2; }
die() { say "$*"; exit 1; }

# bounded SECONDS COMMAND...: run COMMAND with a time limit, because a daemon may hang.
bounded() {
	if command -v timeout >/dev/null 2>&1; then
		timeout "$@"
	else
		shift
		"$@"
	fi
}

# answers [ADDRESS]: succeeds if an engine responds there, or at the CLI's default address.
# Without a server, `docker info` exits with 0, so its output is checked, too.
answers() {
	command -v docker >/dev/null 2>&1 || return 1
	if [ $# -gt 0 ]; then
		v=$(bounded 10 docker -H "$1" info --format '{{.ServerVersion}}' 2>/dev/null) || return 1
	else
		v=$(bounded 10 docker info --format '{{.ServerVersion}}' 2>/dev/null) || return 1
	fi
	[ -n "$v" ]
}

# pinged SOCKET: succeeds if an engine responds on the socket to GET /_ping, or to the CLI
# if curl is missing.
pinged() {
	[ -S "$1" ] || return 1
	if command -v curl >/dev/null 2>&1; then
		[ "$(curl -fsS -m 5 --unix-socket "$1" http://docker/_ping 2>/dev/null)" = OK ]
	else
		answers "unix://$1"
	fi
}

# address: print the CLI's default address: DOCKER_HOST or the current context's.
address() {
	if [ -n "${DOCKER_HOST:-}" ]; then
		echo "$DOCKER_HOST"
	else
		docker context inspect --format '{{.Endpoints.docker.Host}}' 2>/dev/null ||
			echo unix:///var/run/docker.sock
	fi
}

# ours PIDFILE NAME: print the PID in the file if that process is NAME with DIR in its
# command line. The file may be old, and another process may have the PID.
ours() {
	[ -s "$1" ] || return 1
	p=$(cat "$1")
	case $p in '' | *[!0-9]*) return 1 ;; esac
	[ "$(cat "/proc/$p/comm" 2>/dev/null)" = "$2" ] || return 1
	tr '\0' '\n' <"/proc/$p/cmdline" 2>/dev/null | grep -qF -- "$dir/" || return 1
	echo "$p"
}

# end PID SECONDS: SIGTERM, wait, SIGKILL, wait.
end() {
	kill -TERM "$1" 2>/dev/null || return 0
	n=$2
	while [ -d "/proc/$1" ] && [ "$n" -gt 0 ]; do
		case $(sed -n 's/^State:[[:space:]]*//p' "/proc/$1/status" 2>/dev/null) in Z*) return 0 ;; esac
		n=$((n - 1))
		sleep 1
	done
	[ ! -d "/proc/$1" ] || { say "PID $1 ignores SIGTERM; sending SIGKILL"; kill -KILL "$1" 2>/dev/null || :; sleep 1; }
}

install_docker() {
	[ "$(id -u)" = 0 ] || die "no Docker Engine responds, and only root can start one"
	command -v dockerd >/dev/null 2>&1 && command -v docker >/dev/null 2>&1 && return
	command -v apt-get >/dev/null 2>&1 || die "dockerd is missing and there is no apt-get: install Docker manually"
	say "installing docker.io"
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq >&2 || say "apt-get update failed; using the old lists"
	apt-get install -y -qq docker.io >&2
	# Newer Debian and Ubuntu have the command line tool in a separate package.
	command -v docker >/dev/null 2>&1 || apt-get install -y -qq docker-cli >&2
	command -v dockerd >/dev/null 2>&1 || die "docker.io is installed, but there is no dockerd"
}

start() {
	if pinged "$sock"; then
		say "already running"
		echo "unix://$sock"
		return
	fi
	if answers; then
		a=$(address)
		say "using the engine at $a"
		echo "$a"
		return
	fi
	install_docker
	# If systemd runs, the installation of the package has started the system's engine.
	if [ -z "${DOCKER_HOST:-}" ] && answers; then
		a=$(address)
		say "using the system's engine at $a"
		echo "$a"
		return
	fi
	[ ${#sock} -le 100 ] || die "$sock is too long for a unix socket (100 characters); choose another DIR"
	mkdir -p "$dir/data" "$dir/exec"
	rm -f "$sock" "$dir/dockerd.pid"
	say "starting dockerd in $dir"
	# With setsid, a Ctrl-C in the terminal does not reach dockerd.
	# shellcheck disable=SC2086 # DOCKERD_FLAGS is a list of words
	setsid dockerd -H "unix://$sock" --data-root "$dir/data" --exec-root "$dir/exec" \
		-p "$dir/dockerd.pid" ${DOCKERD_FLAGS:-} >"$dir/dockerd.log" 2>&1 </dev/null &
	child=$!
	n=${DOCKERD_DEADLINE_S:-60}
	until pinged "$sock"; do
		n=$((n - 1))
		if ! kill -0 "$child" 2>/dev/null || [ "$n" -le 0 ]; then
			tail -n 20 "$dir/dockerd.log" >&2
			stop
			die "dockerd did not start; see $dir/dockerd.log"
		fi
		sleep 1
	done
	say "ready, PID $(cat "$dir/dockerd.pid")"
	echo "unix://$sock"
}

stop() {
	if p=$(ours "$dir/dockerd.pid" dockerd); then
		say "stopping dockerd, PID $p"
		end "$p" 40
	fi
	# A killed dockerd leaves its containerd running.
	for f in "$dir/exec/containerd/containerd.pid" "$dir/exec/containerd.pid"; do
		if p=$(ours "$f" containerd); then end "$p" 10; fi
	done
	rm -f "$sock" "$dir/dockerd.pid"
	# Unmount what is below DIR, the innermost first. The mount point is the fifth field of
	# mountinfo, with octal escapes.
	awk '{print $5}' /proc/self/mountinfo | while read -r m; do printf '%b\n' "$m"; done |
		grep -F -- "$dir/" | sort -r | while read -r m; do
		case $m in "$dir"/*) umount "$m" 2>/dev/null || umount -l "$m" || say "cannot unmount $m" ;; esac
	done
}

[ $# -eq 2 ] || { sed -n '2,16s/^# \{0,1\}//p' "$0" >&2; exit 2; }
case $1 in
start)
	mkdir -p "$2"
	dir=$(cd "$2" && pwd -P)
	;;
stop)
	dir=$(cd "$2" 2>/dev/null && pwd -P) || { say "$2: nothing to stop"; exit 0; }
	;;
*) die "unknown command $1; use start DIR or stop DIR" ;;
esac
sock=$dir/docker.sock
"$1"
