package main

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// The collector is told to work less often than it would with so small a heap, and
// to work harder before the memory is used up that the machine can spare. What is
// alive may outgrow that, with a million emails that wait: then the limit leaves
// three quarters of it again, because a collector that runs all the time would take
// half of the machine, and everything would be slower the more there is to do.
const (
	memoryLimit = 384 << 20 // bytes; of a small machine
	serverShare = 32        // of the memory of a larger one, or of its container, this part
	toolShare   = 8         // likewise, of what works for minutes and ends
	gcPercent   = 300
)

// spare is the memory that the collector need not save, in bytes.
func spare(share uint64) int64 {
	all, err := memlimit.ApplyFallback(memlimit.FromCgroup, memlimit.FromSystem)()
	if err != nil {
		return memoryLimit
	}
	return max(memoryLimit, int64(all/share))
}

// makeRoom raises the limit while more is alive than it was made for, until ctx ends.
func makeRoom(ctx context.Context, least int64) {
	alive := []runtimemetrics.Sample{{Name: "/gc/heap/live:bytes"}}
	limit := least
	for {
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return
		}
		runtimemetrics.Read(alive)
		wanted := max(least, int64(alive[0].Value.Uint64())*7/4)
		if wanted > limit || wanted < limit*3/4 {
			limit = wanted
			debug.SetMemoryLimit(limit)
		}
	}
}

// syncing is how many processors more than the machine has the scheduler is told
// of. A goroutine that waits for the disk in a system call keeps its processor
// until the scheduler notices, and on two cores two of them would stop everybody
// else: answers took ten times as long.
const syncing = 4

// tune sets what the environment does not, and keeps to it until ctx ends.
func tune(ctx context.Context, share uint64) {
	if os.Getenv("GOMEMLIMIT") == "" {
		limit := spare(share)
		debug.SetMemoryLimit(limit)
		go makeRoom(ctx, limit)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.NumCPU() + syncing)
	}
}

// What is held for nothing is given back to the system every so often, if there is
// so much of it.
const (
	trimEvery = 30 * time.Second
	worthTrim = 64 << 20 // bytes
)

// trim gives memory back that a start or a burst has used. The collector itself
// would keep four times of what is in use, and a server at rest hardly calls it.
func trim(ctx context.Context) error {
	var collections uint32
	var kept uint64 // bytes that were left the last time
	var m runtime.MemStats
	for {
		select {
		case <-time.After(trimEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
		runtime.ReadMemStats(&m)
		atRest := m.NumGC <= collections+1
		if atRest && m.HeapSys-m.HeapReleased > kept+worthTrim {
			debug.FreeOSMemory()
			runtime.ReadMemStats(&m)
			kept = m.HeapSys - m.HeapReleased
		}
		collections = m.NumGC
	}
}
