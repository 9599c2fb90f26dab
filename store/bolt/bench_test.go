package bolt

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/berth-run/berth/serving"
	"github.com/berth-run/berth/store"
)

// filled returns a store that holds 1,000 ConfigMaps, o-0 to o-999.
func filled(b *testing.B) *Store {
	b.Helper()
	s := open(b, newPath(b), Options{})
	create(b, s, namespace("default"))
	var group sync.WaitGroup
	for writer := range 50 {
		group.Go(func() {
			for i := range 20 {
				if _, err := s.Create(b.Context(), configMap(fmt.Sprint("o-", writer*20+i), "")); err != nil {
					b.Error(err)
				}
			}
		})
	}
	group.Wait()
	return s
}

func BenchmarkGet(b *testing.B) {
	s := filled(b)
	for b.Loop() {
		if _, err := s.Get(b.Context(), serving.KindConfigMap, "default", "o-500"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkList1000(b *testing.B) {
	s := filled(b)
	for b.Loop() {
		if _, _, err := s.List(b.Context(), serving.KindConfigMap, "default"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCreate(b *testing.B) {
	for _, writers := range []int{1, 4, 16, 64} {
		b.Run(fmt.Sprint("writers=", writers), func(b *testing.B) {
			s := filled(b)
			parallel(b, writers, func(i int64) error {
				_, err := s.Create(b.Context(), configMap(fmt.Sprint("new-", i), "1"))
				return err
			})
		})
	}
}

func BenchmarkUpdate(b *testing.B) {
	for _, writers := range []int{1, 4, 16, 64} {
		b.Run(fmt.Sprint("writers=", writers), func(b *testing.B) {
			s := filled(b)
			parallel(b, writers, func(i int64) error {
				_, err := s.Update(b.Context(), configMap(fmt.Sprint("o-", i%1000), fmt.Sprint(i)), store.Spec)
				return err
			})
		})
	}
}

func BenchmarkUpdateThatChangesNothing(b *testing.B) {
	s := filled(b)
	o, err := s.Get(b.Context(), serving.KindConfigMap, "default", "o-500")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.Update(b.Context(), o, store.Spec); err != nil {
			b.Fatal(err)
		}
	}
}

// parallel calls f b.N times from several goroutines.
func parallel(b *testing.B, writers int, f func(i int64) error) {
	var next atomic.Int64
	var group sync.WaitGroup
	b.ResetTimer()
	for range writers {
		group.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				if err := f(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	b.StopTimer()
}
