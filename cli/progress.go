package cli

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/term"
)

// progress tells a person what goes on: one line that changes on a terminal, a line for each step elsewhere.
type progress struct {
	out   io.Writer
	width int    // of the terminal; 0 is none
	step  string // the step last shown
	text  string // what the terminal's line was made from
	drawn bool   // the terminal's line is not empty
}

// newProgress shows progress on stderr, so that stdout holds results only.
func (p *program) newProgress() *progress {
	shown := &progress{out: p.stderr}
	if file, ok := p.stderr.(*os.File); ok && terminal(file) {
		shown.width = 80
		if width, _, err := term.GetSize(int(file.Fd())); err == nil && width > 0 {
			shown.width = width
		}
	}
	return shown
}

// show says where things are. Step names the step; text may change within it, which only a terminal shows.
func (s *progress) show(step, text string) {
	if s.width == 0 {
		if step != s.step {
			fmt.Fprintln(s.out, text)
		}
		s.step = step
		return
	}
	if text == s.text && s.drawn {
		return
	}
	s.step, s.text = step, text
	if runes := []rune(text); len(runes) >= s.width {
		text = string(runes[:s.width-1])
	}
	fmt.Fprintf(s.out, "\r\x1b[K%s", text) // to the line's start, and empty it
	s.drawn = true
}

// line writes a whole line that stays, in place of a terminal's line of progress, which comes back when it changes.
func (s *progress) line(text string) {
	if s.width > 0 {
		text = "\r\x1b[K" + text
	}
	fmt.Fprintln(s.out, text)
}

// end empties the terminal's line, so that what follows starts on it.
func (s *progress) end() {
	if s.drawn {
		fmt.Fprint(s.out, "\r\x1b[K")
		s.drawn = false
	}
}
