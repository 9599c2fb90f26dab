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
	stdin   io.WriteCloser
	stdout  *bufio.Reader
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
	c.stdout = bufio.NewReader(stdout)
	line, err := c.stdout.ReadString('\n')
	if err != nil {
		c.stop()
		return nil, fmt.Errorf("starting the %s: %w", role, err)
	}
	c.address = strings.TrimSpace(line)
	return c, nil
}

// settle has the child give back the memory that it does not need.
func (c *child) settle() error {
	if _, err := c.stdin.Write([]byte{'\n'}); err != nil {
		return err
	}
	_, err := c.stdout.ReadString('\n')
	return err
}

func (c *child) pid() int { return c.command.Process.Pid }

func (c *child) stop() {
	c.stdin.Close()
	c.command.Wait()
}
