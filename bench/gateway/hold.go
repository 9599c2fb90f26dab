package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// askedAtOnce is how many of the held connections are asked at the same time: less than a listener's backlog.
const askedAtOnce = 64

// holder has many connections open, which are silent most of the time.
type holder struct {
	poll   *poll
	fds    []int // -1 for one that is not open
	buffer []byte
}

func newHolder(address string, connections int) (*holder, error) {
	p, err := newPoll(address)
	if err != nil {
		return nil, err
	}
	h := &holder{poll: p, fds: make([]int, connections), buffer: make([]byte, 16<<10)}
	for i := range h.fds {
		h.fds[i] = -1
	}
	return h, nil
}

// ask sends one request over each connection, opens those that are not open, and returns how many answers were
// whole. whole says so of what has arrived on a connection so far.
func (h *holder) ask(request func(int) []byte, whole func(number int, got []byte) (bool, error)) (answered int, err error) {
	type exchange struct{ rest, got []byte }
	underWay := make(map[int]*exchange, askedAtOnce)
	lost := func(number int) {
		unix.Close(h.fds[number])
		h.fds[number] = -1
		delete(underWay, number)
	}
	for next := 0; next < len(h.fds) || len(underWay) > 0; {
		for ; len(underWay) < askedAtOnce && next < len(h.fds); next++ {
			if h.fds[next] < 0 {
				if h.fds[next], err = h.poll.connect(next); err != nil {
					return answered, err
				}
			}
			x := &exchange{}
			if x.rest, err = h.poll.write(h.fds[next], request(next)); err != nil {
				lost(next)
				continue
			}
			underWay[next] = x
		}
		if len(underWay) == 0 {
			continue
		}
		events, err := h.poll.wait()
		if err != nil {
			return answered, fmt.Errorf("%d of %d connections answered: %w", answered, len(h.fds), err)
		}
		for _, event := range events {
			number := int(event.Fd)
			if h.fds[number] < 0 {
				continue
			}
			n, ended, err := h.poll.read(h.fds[number], h.buffer)
			if err != nil || ended {
				lost(number)
				continue
			}
			x := underWay[number]
			if x == nil {
				continue // an event of the answer before
			}
			if x.rest, err = h.poll.write(h.fds[number], x.rest); err != nil {
				lost(number)
				continue
			}
			x.got = append(x.got, h.buffer[:n]...)
			done, err := whole(number, x.got)
			if err != nil {
				return answered, err
			}
			if done {
				answered++
				delete(underWay, number)
			}
		}
	}
	return answered, nil
}

func (h *holder) close() {
	for _, fd := range h.fds {
		if fd >= 0 {
			reset(fd)
		}
	}
	unix.Close(h.poll.fd)
}
