package cli

import (
	"context"
	"fmt"
	"net/url"

	"github.com/berth-run/berth/build"
	"github.com/berth-run/berth/client"
	"github.com/berth-run/berth/image"
)

// publish makes the image that a deploy names one that the server can pull, and returns its reference: images in
// files, and those built from source, are pushed to the server.
func (p *program) publish(ctx context.Context, berth *client.Client, namespace, name string, f *deployFlags, shown *progress) (string, error) {
	if f.source == "" && !image.IsLocal(f.image) {
		return f.image, nil
	}
	address, err := url.Parse(berth.Server())
	if err != nil {
		return "", fmt.Errorf("parsing the server's URL: %w", err)
	}
	server := image.Server{URL: address, Token: berth.Token(), Transport: berth.Transport()}
	push := func(complete, total int64) {
		shown.show("pushing", fmt.Sprintf("Image: pushing %s", amount(complete, total)))
	}
	repository := namespace + "/" + name
	if f.source != "" {
		shown.show("building", fmt.Sprintf("Source %s: building", f.source))
		built, err := build.Source(ctx, f.source, build.Options{})
		if err != nil {
			return "", err
		}
		shown.show("pushing", "Image: pushing")
		return image.Push(ctx, built, server, repository, push)
	}
	loaded, err := image.Load(f.image)
	if err != nil {
		return "", err
	}
	shown.show("pushing", "Image: pushing")
	return image.Push(ctx, loaded, server, repository, push)
}

// amount is how much of something is done: "12.3 of 45.6 MiB".
func amount(complete, total int64) string {
	const mib = 1 << 20
	if total <= 0 {
		return fmt.Sprintf("%.1f MiB", float64(complete)/mib)
	}
	return fmt.Sprintf("%.1f of %.1f MiB", float64(complete)/mib, float64(total)/mib)
}
