package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// child is this program in another role.
type child struct {
	command *exec.Cmd
	address string
	stdin   io.Closer
}

func startChild(role string, args ...string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{command: exec.Command(self, append([]string{role}, args...)...)}
	c.command.Stderr = os.Stderr
	if c.stdin, err = c.command.StdinPipe(); err != nil { // its end is the child's end
		return nil, err
	}
	stdout, err := c.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.command.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		c.stop()
		return nil, fmt.Errorf("starting the %s: %w", role, err)
	}
	c.address = strings.TrimSpace(line)
	return c, nil
}

func (c *child) pid() int { return c.command.Process.Pid }

func (c *child) stop() {
	c.stdin.Close()
	c.command.Wait()
}
