#!/bin/sh
# Before the files of the package are unpacked: some of them belong to the group orch. A
# dynamic user of that name, which an older unit has while it runs, does not count.
set -e
getent -s files group orch >/dev/null || groupadd --system orch
getent -s files passwd orch >/dev/null ||
	useradd --system --gid orch --home-dir /var/lib/orch --no-create-home --shell /usr/sbin/nologin orch
