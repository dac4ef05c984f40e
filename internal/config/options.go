package config

import (
	"math"
	"strings"
	"time"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/scheduler"
	"github.com/septemberai/orch/scheduler/boot"
)

// drainMove is the value of ORCH_ON_DRAIN with which engines leave a node that is drained.
const drainMove = "move"

// Scheduler returns the scheduler's part of the configuration.
func (c *Config) Scheduler() scheduler.Options {
	job := jobs.Settings{
		HCL: c.jobFile, Driver: jobs.Driver(c.EngineDriver), KeyReload: c.KeyReload,
		NomadLogs: c.EngineLogs == "nomad" || c.EngineLogs == "auto" && c.EngineDriver == string(jobs.RawExec),
		BinDir:    c.EngineBinDir, CatalogPath: c.CatalogPath, PKIPath: c.pkiPath(),
		CheckIntervalS: c.HealthCheckIntervalS, CheckTimeoutS: c.HealthCheckTimeoutS, CheckMaxFailures: c.HealthMaxFailures,
		SitsOutDrains: c.OnDrain == drainMove,
		UserMeta:      c.JobUser, ConsulUI: strings.TrimRight(c.ConsulUIURL, "/"),
		NeedsChecksum: boot.Detection(c.BootDetection) == boot.ByConsul,
		Namespace:     c.NomadNamespace, Deployment: strings.TrimSuffix(c.ConsulPrefix, "/"),
	}
	return scheduler.Options{
		Job: job, DefaultImage: c.EngineImage, KeyProofPath: c.KeyProofPath,
		Resources:    engine.Resources{CPUMHz: c.EngineCPUMHz, MemoryMB: c.EngineMemoryMB},
		BootTimeout:  time.Duration(c.BootTimeoutS) * time.Second,
		ProbeTimeout: time.Duration(c.HealthCheckTimeoutS) * time.Second,
		Detection:    boot.Detection(c.BootDetection),
		MaxFailures:  c.HealthMaxFailures,
		Restart: engine.Backoff{
			Base: time.Duration(c.RestartBackoffBaseS) * time.Second, Max: time.Duration(c.RestartBackoffMaxS) * time.Second,
			MaxAttempts: c.RestartMaxAttempts,
		},
		RestartSubsystems: c.RestartSubsystems,
		IdleTimeout:       time.Duration(min(c.IdleTimeoutS, math.MaxInt32)) * time.Second,
		VolumePool:        c.VolumePool,
		WarmPool:          c.WarmPool,
		AllowOpenNomad:    c.AllowOpenNomad,
		ProviderKeys:      c.providerKeys(),
		Snapshots:         c.snapshots(),
		MoveOnDrain:       c.OnDrain == drainMove,
		EvacuateParallel:  c.EvacuateParallel,

		ReconcileInterval: time.Duration(c.ReconcileIntervalS) * time.Second,
		OrphanGrace:       time.Duration(c.OrphanGraceS) * time.Second,
	}
}

// Ops returns the address of the operators' listener, or "" for none. With required false,
// the service runs without the listener if the address is in use: nobody asked for it.
func (c *Config) Ops() (addr string, required bool) {
	if c.OpsAddr == opsOff {
		return "", false
	}
	return c.OpsAddr, c.AdminOpsOnly || c.lookup["ORCH_OPS_ADDR"] != ""
}
