package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/yaml"

	"github.com/berth-run/berth/serving"
)

// outputFlag adds -o/--output to a command, with the formats it knows besides the one for people.
func outputFlag(c *cobra.Command, format *string, formats ...string) {
	c.Flags().StringVarP(format, "output", "o", "", "output format: "+strings.Join(formats, ", ")+" (default: for people)")
	// The only error is a flag that does not exist.
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	previous := c.PreRunE
	c.PreRunE = func(c *cobra.Command, args []string) error {
		if previous != nil {
			if err := previous(c, args); err != nil {
				return err
			}
		}
		if *format == "" {
			return nil
		}
		for _, known := range formats {
			if *format == known {
				return nil
			}
		}
		return usagef("unknown output format %q; known: %s", *format, strings.Join(formats, ", "))
	}
}

// printObject prints one object as JSON, YAML or its name.
func printObject(out io.Writer, format string, object serving.Object) error {
	if format == "name" {
		kind := serving.KindOf(object)
		name := kind.Singular
		if kind.Group != "" {
			name += "." + kind.Group
		}
		_, err := fmt.Fprintf(out, "%s/%s\n", name, object.GetName())
		return err
	}
	return printValue(out, format, object)
}

// printObjects prints a list of objects as one JSON or YAML document, or a name a line.
func printObjects[T serving.Object](out io.Writer, format string, objects []T) error {
	if format == "name" {
		for _, object := range objects {
			if err := printObject(out, format, object); err != nil {
				return err
			}
		}
		return nil
	}
	if objects == nil {
		objects = []T{}
	}
	return printValue(out, format, map[string]any{
		"apiVersion": "v1", "kind": "List", "metadata": map[string]any{}, "items": objects,
	})
}

// printValue prints anything as JSON or YAML.
func printValue(out io.Writer, format string, value any) error {
	var text []byte
	var err error
	if format == "yaml" {
		text, err = yaml.Marshal(value)
	} else {
		text, err = json.MarshalIndent(value, "", "  ")
		text = append(text, '\n')
	}
	if err != nil {
		return fmt.Errorf("encoding as %s: %w", format, err)
	}
	_, err = out.Write(text)
	return err
}

// table prints rows in columns.
type table struct {
	writer *tabwriter.Writer
}

func newTable(out io.Writer, header ...string) *table {
	t := &table{writer: tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)}
	t.row(header...)
	return t
}

func (t *table) row(cells ...string) {
	fmt.Fprintln(t.writer, strings.Join(cells, "\t"))
}

func (t *table) end() error { return t.writer.Flush() }

// terminal reports whether a stream is a terminal.
func terminal(stream any) bool {
	file, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// age prints how long ago a time was: "5m".
func age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return duration.HumanDuration(time.Since(t))
}

// firstLine is the first line of a text, for tables.
func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}
