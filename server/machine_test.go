package server

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/berth-run/berth/autoscaler"
)

func TestCheckMemory_RefusesWhatTheMachineDoesNotHaveAndWarnsOfWhatKeepsServicesFromRunning(t *testing.T) {
	gigabytes := func(n int64) autoscaler.Amount { return autoscaler.Amount{Bytes: n << 30} }
	for _, c := range []struct {
		reserve, instances autoscaler.Amount
		memory             string
		refuses, warns     string
	}{
		{autoscaler.Amount{Percent: 5}, autoscaler.Amount{Percent: 400}, "512Mi", "", ""},
		{autoscaler.Amount{}, autoscaler.Amount{}, "", "", ""},
		{autoscaler.Amount{}, autoscaler.Amount{}, "512Mi", "", ""},
		{gigabytes(8), gigabytes(4), "512Mi", "--memory-reserve 8Gi: give less than the machine's memory, 8Gi", ""},
		{gigabytes(1), autoscaler.Amount{Percent: 1}, "512Mi", "", "instance-memory=1%"},
		{gigabytes(1), gigabytes(1), "2Gi", "", "memory=2Gi instance-memory=1Gi"},
	} {
		config := DefaultConfig()
		config.Memory = c.memory
		config.Scaling.MachineMemory = 8 << 30
		config.Scaling.MemoryReserve, config.Scaling.InstanceMemory = c.reserve, c.instances
		var log strings.Builder
		err := checkMemory(config, slog.New(slog.NewTextHandler(&log, nil)))
		if c.refuses == "" && err != nil || c.refuses != "" && (err == nil || err.Error() != c.refuses) {
			t.Errorf("%+v: error %v", c, err)
		}
		if (log.Len() > 0) != (c.warns != "") || !strings.Contains(log.String(), c.warns) {
			t.Errorf("%+v: log %q", c, log.String())
		}
	}
}
