package main

import "fmt"

// beside adds a figure of a series beside another, whose median it may be at
// most so many times.
func (rep *report) beside(rec recorder, name, series, against, floor string, most float64) {
	f := figure{Name: name, Unit: "ms", Orch: rec.summary(series), Against: against, Floor: rec.summary(floor)}
	if f.Orch == nil || f.Floor == nil {
		return
	}
	q := f.Orch.P50 / f.Floor.P50
	f.Ratio = &q
	f.judge(q, most, "≤ %g ×")
	rep.add(f)
}

// alone adds a figure of a series whose median may be at most so many ms.
func (rep *report) alone(rec recorder, name, series string, most float64) {
	f := figure{Name: name, Unit: "ms", Orch: rec.summary(series)}
	if f.Orch == nil {
		return
	}
	f.judge(f.Orch.P50, most, "p50 ≤ %g ms")
	rep.add(f)
}

// addRounds makes the figures of what the rounds recorded.
func (rep *report) addRounds(rec recorder) {
	const hand, script, same = "Nomad by hand", "a script", "— the same"
	for _, driver := range []string{rawExec, inDock} {
		name := func(operation string) string { return series(operation, driver) }
		rep.beside(rec, name("provision, volume ready"), name(provision), hand, name(provision+byHand), 1.3)
		rep.beside(rec, same, name(provision), script, name(provision+byScript), 0)
		if driver == inDock {
			rep.beside(rec, same, name(provision), dockerRun, dockerRun, 1.5)
		}
		rep.alone(rec, "— of it orch's own share", ownShare(driver), 30)
		rep.beside(rec, "— of it boot", bootOf("", driver), hand, bootOf(byHand, driver), 0)
		rep.alone(rec, name(warmClaim), name(warmClaim), 20)
		// A container is what docker run makes; a process has a tenth of its
		// work to do, and is put beside it all the same.
		rep.beside(rec, same, name(warmClaim), dockerRun, dockerRun, 0.1)
		rep.beside(rec, same, name(warmClaim), script, name(provision+byScript), 0)
		rep.alone(rec, name(noPool), name(noPool), 0)
		rep.beside(rec, name(wake), name(wake), hand, name(start+byHand), 1.3)
		rep.alone(rec, name(wakePaused), name(wakePaused), 50)
		rep.beside(rec, name(start), name(start), hand, name(start+byHand), 1.3)
		rep.beside(rec, same, name(start), script, name(start+byScript), 0)
		rep.beside(rec, name(stop), name(stop), hand, name(stop+byHand), 1.3)
		rep.beside(rec, same, name(stop), script, name(stop+byScript), 0)
		rep.beside(rec, name(destroy), name(destroy), hand, name(destroy+byHand), 0)
		rep.beside(rec, same, name(destroy), script, name(destroy+byScript), 0)
		rep.beside(rec, name(rotateRestart), name(rotateRestart), hand, name(rotateRestart+byHand), 0)
		rep.alone(rec, name(rotateReload), name(rotateReload), 150)
		for _, operation := range []string{provision, provision + byHand, provision + byScript, noPool, warmClaim, wake, wakePaused, start, start + byHand, stop, stop + byHand, destroy, rotateRestart, rotateRestart + byHand, rotateReload} {
			rep.addSteps(rec, name(operation))
		}
	}
	rep.addSteps(rec, dockerRun)
	rep.note("Percentiles by nearest rank over single measurements, after %d warm-up rounds that are not counted; ratios are of medians. An operation is measured right beside what it is compared with, in turns the one or the other first.", warmUps)
	rep.note("By hand: the same rendered job, its volume ready and its variable written before the clock starts; registered with Nomad's API, its address learnt by a blocking query, its port asked every 2 ms. A destroy by hand ends the process and removes job, volume and variable; there is no key in Vault. A rotation by hand writes the variable and asks until the new key is accepted.")
	rep.note("A script: the same job and preparation, by `nomad job run -detach` and a blocking query until its Consul check passes, which runs every %s, the least that Consul takes; `nomad job stop`, and to destroy also `-purge`, `nomad volume delete` and `nomad var purge`. One that polls is slower.", scriptCheckEvery)
	rep.note("Before each provision with its volume ready the service's pool is full, before each warm one %d engines wait. Engines get no provider keys, so Vault takes no part in their boot on either side.", warmKept)
	rep.note("Own share: what the caller of a provision waits, less the service's register and boot steps. Steps are the service's own log: checks asks the dependencies (once per second), claim is the place and the row's first write, rows its later ones, audit-begin and audit-end one commit to disk each. %s is HTTP, authentication and turns.", betweenSteps)
	rep.note("Wake: admit with auto_wake of an engine that its idle time put to sleep, beside a start by hand; paused: of one whose container was frozen.")
}

func (rep *report) addFleet(res fleetResult) {
	bare := summarize(res.bare.latency)
	openLoop := func(name string, load openLoad, res readResult, most float64, floor *summary) {
		reads, late := summarize(res.latency), summarize(res.late)
		name = fmt.Sprintf("%s, %s", name, load)
		f := figure{Name: name, Unit: "ms", Orch: &reads}
		if floor != nil {
			f.Against, f.Floor = "one Consul read", floor
		}
		f.judge(reads.P99, most, "p99 ≤ %g ms")
		rep.note("%s: timed from the moment each call was due; of that this program itself was late by p50 %.2f, p99 %.2f ms.", name, late.P50, late.P99)
		if failed := res.failed; len(failed) > 0 {
			no := false
			f.Reached = &no
			rep.note("%d of %d calls failed, the first with: %v.", len(failed), reads.N, failed[0])
		}
		rep.add(f)
	}
	openLoop("GET /engines/{user_id}", usual, res.reads, 5, &bare)
	openLoop("admit of a running engine", usual, res.admits, 5, &bare)
	openLoop("admit of a running engine", heavy, res.heavy, 2, nil)
	rep.addClosed(res.admitted, res.direct)
	rep.addMemory(fmt.Sprintf("%d engines, after the reads", fleetSize), res.running, 60)
	rep.addMemory("at the end", res.end, 60)
}

// addClosed puts admits beside the direct calls.
func (rep *report) addClosed(admits, direct closedResult) {
	const against = "three direct calls"
	name := fmt.Sprintf("%d callers without a pause for %s", callers, closedTime)
	times := admits.perSecond / direct.perSecond
	f := figure{Name: "admits, " + name, Unit: "1/s", Orch: single(admits.perSecond), Against: against, Floor: single(direct.perSecond), Ratio: &times}
	f.judgeLeast(times, 20, "≥ %g ×")
	rep.add(f)
	f = figure{Name: "— the same", Unit: "1/s", Orch: single(admits.perSecond)}
	f.judgeLeast(admits.perSecond, 5000, "≥ %g/s")
	rep.add(f)
	mine, theirs := summarize(admits.latency), summarize(direct.latency)
	tail := mine.P99 / theirs.P99
	f = figure{Name: "— of each admit", Unit: "ms", Orch: &mine, Against: against, Floor: &theirs}
	f.judge(tail, 0.2, "p99 ≤ %g ×")
	rep.add(f)
	rep.note("Three direct calls: the engine's allocation from Nomad, its health from Consul, its key from Vault, each by the official client over kept connections. p99 of an admit against theirs: %.2f ×.", tail)
}

func (rep *report) addLists(res listsResult) {
	listed := func(name string, values []float64) {
		sum := summarize(values)
		f := figure{Name: fmt.Sprintf("%s, %d engines", name, rowsAtScale), Unit: "ms", Orch: &sum}
		f.judge(sum.P99, 50, "p99 ≤ %g ms")
		rep.add(f)
	}
	listed("GET /engines, 100 from anywhere", res.page)
	listed("GET /engines, the 41st 100 of a status", res.filtered)
	listed("GET /status", res.status)
	rep.addMemory(fmt.Sprintf("%d rows", rowsAtScale), res.running, 60)
}

func (rep *report) addMemory(when string, mib, most float64) {
	f := figure{Name: "VmRSS of the service, " + when, Unit: "MiB", Orch: single(mib)}
	f.judge(mib, most, "≤ %g MiB")
	rep.add(f)
}

func (rep *report) addLoad(res loadResult) {
	rate := func(name string, t, floor throughput, least float64) {
		f := figure{Name: fmt.Sprintf("%s, %d by %d callers", name, t.done, loadCallers), Unit: "1/s", Orch: single(t.perSecond())}
		f.judgeLeast(t.perSecond(), least, "≥ %g/s")
		if floor.done > 0 {
			times := t.perSecond() / floor.perSecond()
			f.Against, f.Floor, f.Ratio = "Nomad by hand", single(floor.perSecond()), &times
		}
		rep.add(f)
	}
	all := func(t throughput) {
		f := figure{Name: "— of them answer at the end", Unit: "engines", Orch: single(float64(t.alive))}
		f.judgeLeast(float64(t.alive), float64(t.done), "all %g")
		rep.add(f)
	}
	rate("provisions, volume ready, raw_exec", res.cold, res.byHand, 20)
	all(res.cold)
	rate("destroys, raw_exec", res.destroys, throughput{}, 0)
	rate("provisions, warm, raw_exec", res.warm, throughput{}, 200)
	all(res.warm)
	rep.addMemory(fmt.Sprintf("%d engines", loadEngines), res.rss, 120)
	rep.note("Load: the volumes are ready and the warm engines wait before the clock starts, and the service makes new ones all the while. A warm engine takes about 30 MiB of Nomad's helper processes (see the footprint): %d are 3 GiB.", loadWarm)
}

func (rep *report) addBurst(res burstResult) {
	s := summarize(res.latency)
	rep.add(figure{Name: fmt.Sprintf("%d provisions at once, %d of them warm", burstEngines, burstWarm), Unit: "ms", Orch: &s})
	f := figure{Name: "— until the last answer", Unit: "s", Orch: single(res.seconds)}
	rep.add(f)
	f = figure{Name: "— that succeeded", Unit: "engines", Orch: single(float64(len(res.latency)))}
	f.judgeLeast(float64(len(res.latency)), burstEngines, "all %g")
	rep.add(f)
	f = figure{Name: "— that answer at the end", Unit: "engines", Orch: single(float64(res.alive))}
	f.judgeLeast(float64(res.alive), burstEngines, "all %g")
	rep.add(f)
	rep.addMemory(fmt.Sprintf("%d engines", burstEngines), res.rss, 120)
	rep.note("Burst: one product, raw_exec, a ready volume for each. Nomad is told that the node has room for %d engines. The service lets a product boot a few at a time, as many as are done in time. What engines print is kept by nobody, as their driver has it with docker: Nomad's log helper of each wakes 20 times per second, which for 300 is a large part of a core (see the footprint).", mostEngines)
	if len(res.failed) > 0 {
		rep.note("%d provisions of the burst failed, the first with: %v.", len(res.failed), res.failed[0])
	}
}

func (rep *report) addFootprint(results []footprintResult) {
	for _, res := range results {
		name := fmt.Sprintf("one idle engine, %s, logs by %s", res.driver, map[string]string{"nomad": "Nomad", "driver": "its driver"}[res.logs])
		rep.add(figure{Name: name + ": PSS", Unit: "MiB", Orch: single(res.engine.pss + res.helper.pss)})
		rep.add(figure{Name: "— of it the engine", Unit: "MiB", Orch: single(res.engine.pss)})
		rep.add(figure{Name: fmt.Sprintf("— of it %.1f helper processes", res.helper.n), Unit: "MiB", Orch: single(res.helper.pss)})
		rep.add(figure{Name: "— RSS of all", Unit: "MiB", Orch: single(res.engine.rss + res.helper.rss)})
		rep.add(figure{Name: "— CPU of all", Unit: "% of a core", Orch: single(res.cpu)})
	}
	rep.note("Footprint: %d engines of the reference engine, %s after the last one's boot. PSS counts a page that processes share by their part of it, RSS once for each; CPU is that of the next %s. Logs by the driver are the service's default with docker (ORCH_ENGINE_LOGS), by Nomad with raw_exec, where the driver keeps none.", footprintEngines, footprintRest, footprintWatch)
}
