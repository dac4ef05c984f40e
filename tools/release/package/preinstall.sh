#!/bin/sh
# Before the files of the package are unpacked: some of them belong to the group orch.
set -e
getent group orch >/dev/null || groupadd --system orch
getent passwd orch >/dev/null ||
	useradd --system --gid orch --home-dir /var/lib/orch --no-create-home --shell /usr/sbin/nologin orch
