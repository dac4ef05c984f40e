#!/bin/sh
# What a shell script does with engines: it uses the command lines of Nomad and docker,
# and the health check of the job in Consul. Each command returns when its condition is true:
#
#   script.sh run JOB FILE VOL      the job's check passes
#   script.sh stop JOB FILE VOL     no process of the job is left
#   script.sh absent JOB            Consul does not list the service of the job
#   script.sh destroy JOB FILE VOL  process, job, volume and variable are gone
#   script.sh docker NAME DIR HASH  a container responds
#   script.sh describe              prints the machine, what else runs there, and versions
#
# NOMAD, CONSUL, VAULT and ORCH are the commands; NOMAD_ADDR, CONSUL_HTTP_ADDR and
# DOCKER_HOST are the addresses.
set -eu
quietly() { "$@" >/dev/null; }
gone() { # JOB: wait until none of its allocations is pending or running
	until curl -sf "$NOMAD_ADDR/v1/job/$1/allocations" | awk '/"ClientStatus":"(running|pending)"/ { exit 1 }'; do sleep 0.01; done
}
case $1 in
run)
	quietly "$NOMAD" job run -detach -json "$3"
	index=1
	until curl -sf -D "$3.head" "$CONSUL_HTTP_ADDR/v1/health/service/$2?passing&wait=1s&index=$index" | grep -q '"Service"'; do
		index=$(tr -d '\r' <"$3.head" | awk 'tolower($1) == "x-consul-index:" { print $2 }')
	done
	;;
stop)
	quietly "$NOMAD" job stop -detach "$2"
	gone "$2"
	;;
absent)
	until curl -sf "$CONSUL_HTTP_ADDR/v1/health/service/$2" | grep -qx '\[\]'; do sleep 0.05; done
	;;
destroy)
	quietly "$NOMAD" job stop -detach "$2"
	gone "$2" # Nomad forgets the allocations of a purged job immediately
	quietly "$NOMAD" job stop -purge -detach "$2"
	until quietly "$NOMAD" volume delete -type host "$4" 2>&1; do sleep 0.05; done
	quietly "$NOMAD" var purge "nomad/jobs/$2"
	;;
docker) # confined as in the job file; the stack finds the container by its label and directory
	port=$((5000 + $$ % 5000))
	mkdir -m 777 "$3/$2"
	quietly docker run -d --name "$2" --label "com.hashicorp.nomad.alloc_id=$2" -p "127.0.0.1:$port:8000" -v "$3/$2:/data" \
		--user 65532:65532 --read-only --cap-drop ALL --security-opt no-new-privileges --pids-limit 256 \
		--cpu-shares 100 --memory 64m -e "ENGINE_KEY_HASH=$4" -e SQLITE_DB_PATH=/data/brain.sqlite \
		-e CATALOG_DIR=/catalog -e PORT=8000 orch/reference-engine:1
	until curl -sf -m 1 -o /dev/null "http://127.0.0.1:$port/health"; do sleep 0.002; done
	;;
describe)
	echo "commit $(git describe --always --dirty --exclude='*' 2>/dev/null)"
	echo "$(nproc) cores ($(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)), $(sed -n 's/^MemTotal: *//p' /proc/meminfo) of memory"
	echo "$(uname -sr), load average before $(cut -d' ' -f1 /proc/loadavg)"
	for command in "$ORCH" "$NOMAD" "$CONSUL" "$VAULT"; do "$command" version | head -1; done
	[ -z "${DOCKER_HOST-}" ] || docker version --format 'docker {{.Server.Version}}'
	;;
esac
