package cli

import (
	"fmt"
	"strings"
)

// pair is one KEY=VALUE of a flag.
type pair struct{ key, value string }

// splitList splits a flag's value at commas, or at another delimiter when the value begins with it between carets:
// "^:^a,b:c" is "a,b" and "c". This is how gcloud reads lists. An empty value is an empty list.
func splitList(text string) ([]string, error) {
	delimiter := ","
	if strings.HasPrefix(text, "^") {
		rest := text[1:]
		end := strings.Index(rest, "^")
		if end < 0 {
			return nil, fmt.Errorf("%q begins with ^ and has no second one: a delimiter is given as ^DELIMITER^", text)
		}
		if end == 0 {
			return nil, fmt.Errorf("%q has no delimiter between its carets: it is given as ^DELIMITER^", text)
		}
		delimiter, text = rest[:end], rest[end+1:]
	}
	if text == "" {
		return []string{}, nil
	}
	return strings.Split(text, delimiter), nil
}

// splitPairs reads KEY=VALUE pairs of a flag that may have been given several times. A later pair replaces an
// earlier one of the same key. what names a pair for errors: "environment variable".
func splitPairs(flag, what string, texts []string) ([]pair, error) {
	var pairs []pair
	for _, text := range texts {
		items, err := splitList(text)
		if err != nil {
			return nil, usagef("--%s: %v", flag, err)
		}
		for _, item := range items {
			key, value, found := strings.Cut(item, "=")
			key = strings.TrimSpace(key)
			switch {
			case strings.TrimSpace(item) == "":
				continue // a comma at the end
			case !found:
				return nil, usagef("--%s: %q is not KEY=VALUE; where a value has a comma in it, give another "+
					"delimiter: --%s '^:^A=1,2:B=3'", flag, item, flag)
			case key == "":
				return nil, usagef("--%s: %q has no name before the =: every %s needs one", flag, item, what)
			}
			pairs = setPair(pairs, pair{key, value})
		}
	}
	return pairs, nil
}

// splitNames reads a list of names of a flag that may have been given several times.
func splitNames(flag string, texts []string) ([]string, error) {
	var names []string
	for _, text := range texts {
		items, err := splitList(text)
		if err != nil {
			return nil, usagef("--%s: %v", flag, err)
		}
		for _, item := range items {
			if item = strings.TrimSpace(item); item != "" {
				names = append(names, item)
			}
		}
	}
	return names, nil
}

func setPair(pairs []pair, p pair) []pair {
	for i := range pairs {
		if pairs[i].key == p.key {
			pairs[i].value = p.value
			return pairs
		}
	}
	return append(pairs, p)
}
