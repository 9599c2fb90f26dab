package server

import (
	"testing"
	"time"
)

func TestQueueWait_IsReadAndPrinted(t *testing.T) {
	for text, want := range map[string]QueueWait{
		"auto": QueueWaitAuto, "0": 0, "90s": QueueWait(90 * time.Second), "5m": QueueWait(5 * time.Minute), "2.5": QueueWait(2500 * time.Millisecond),
	} {
		var got, again QueueWait
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%q: got %v, %v", text, got, err)
		}
		if err := again.UnmarshalText([]byte(got.String())); err != nil || again != got {
			t.Errorf("%q prints as %q", text, got)
		}
	}
	for _, text := range []string{"", "soon", "-1s", "-1", "Auto"} {
		if err := new(QueueWait).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

func TestQueueWait_FollowsTheStartsWhenItIsAuto(t *testing.T) {
	auto := QueueWaitAuto.limit()
	for start, want := range map[time.Duration]time.Duration{
		0: 10 * time.Second, 2 * time.Second: 10 * time.Second, 4 * time.Second: 14 * time.Second, time.Minute: 210 * time.Second,
	} {
		if got := auto(start); got != want {
			t.Errorf("with starts of %v: got %v, want %v", start, got, want)
		}
	}
	if got := QueueWait(time.Second).limit()(time.Hour); got != time.Second {
		t.Errorf("a certain time: got %v", got)
	}
	if QueueWait(0).limit() != nil {
		t.Error("without one there is a limit")
	}
}
