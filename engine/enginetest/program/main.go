// Command program is what the engine suite's instances run: a container's program that does as its first
// argument says.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	verb, args := "serve", []string(nil)
	if len(os.Args) > 1 {
		verb, args = os.Args[1], os.Args[2:]
	}
	var err error
	switch verb {
	case "serve": // answers requests on PORT
		err = serve(":" + os.Getenv("PORT"))
	case "listen": // answers requests on another address
		err = serve(args[0])
	case "exit": // says something and exits with a code
		fmt.Println("about to exit")
		code, _ := strconv.Atoi(args[0])
		os.Exit(code)
	case "crash": // is killed by a signal
		signal, _ := strconv.Atoi(args[0])
		fmt.Fprintln(os.Stderr, "about to crash")
		crash(syscall.Signal(signal))
	case "silent": // never listens
		fmt.Println("doing nothing")
		for {
			time.Sleep(time.Hour)
		}
	case "spin": // uses all the CPU that it gets
		for n := 0; ; n++ {
		}
	case "late": // listens after a while
		wait, _ := time.ParseDuration(args[0])
		time.Sleep(wait)
		err = serve(":" + os.Getenv("PORT"))
	case "healthy": // asks the program that serves whether it is healthy, and exits with 7 when it is not
		response, err := http.Get("http://localhost:" + os.Getenv("PORT") + "/health")
		if err != nil {
			fmt.Println(err)
			os.Exit(8)
		}
		fmt.Printf("health is %d, MINE is %s\n", response.StatusCode, os.Getenv("MINE"))
		if response.StatusCode != http.StatusOK {
			os.Exit(7)
		}
	case "bloat": // takes memory until it is stopped
		bloat()
	case "parent": // serves, and on POST /bloat has a child that takes memory until it is stopped
		http.HandleFunc("POST /bloat", func(w http.ResponseWriter, r *http.Request) {
			err := exec.Command("/proc/self/exe", "bloat").Run()
			fmt.Println("the child ended:", err)
		})
		err = serve(":" + os.Getenv("PORT"))
	case "graceful": // says goodbye on SIGTERM
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM)
		go func() {
			<-signals
			fmt.Println("goodbye")
			os.Exit(0)
		}()
		err = serve(":" + os.Getenv("PORT"))
	case "stubborn": // ignores SIGTERM
		signal.Ignore(syscall.SIGTERM)
		err = serve(":" + os.Getenv("PORT"))
	case "shout": // writes numbered lines, then serves
		count, _ := strconv.Atoi(args[0])
		out := bufio.NewWriter(os.Stdout)
		for i := range count {
			fmt.Fprintf(out, "line %d\n", i)
		}
		out.Flush()
		err = serve(":" + os.Getenv("PORT"))
	case "fickle": // counts its lives in a file: serves in the first and in those after the last of two numbers
		err = fickle(args[0], args[1], args[2])
	case "say": // writes to stdout and to stderr, and exits with a code
		fmt.Println(args[0])
		fmt.Fprintln(os.Stderr, args[1])
		code, _ := strconv.Atoi(args[2])
		os.Exit(code)
	case "cat": // copies stdin to stdout
		_, err = io.Copy(os.Stdout, os.Stdin)
	case "look": // tells what it finds around it
		err = json.NewEncoder(os.Stdout).Encode(surroundings(""))
	case "ask": // sends a request: METHOD URL
		err = ask(args[0], args[1])
	case "nest": // says when it has a child, and does nothing, as that
		child := exec.Command("/proc/self/exe", "silent")
		child.Stdout = os.Stdout
		err = child.Run()
	case "terminal": // tells the size of its terminal, now and for each line that it reads
		err = terminal()
	default:
		err = fmt.Errorf("unknown verb %q", verb)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(address string) error {
	http.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "hello") })
	http.HandleFunc("GET /inspect", inspect)
	http.HandleFunc("GET /dial", dial)
	http.HandleFunc("GET /resolve", resolve)
	http.HandleFunc("GET /read", read)
	http.HandleFunc("GET /list", list)
	http.HandleFunc("GET /stat", stat)
	http.HandleFunc("POST /link", func(w http.ResponseWriter, r *http.Request) {
		if err := os.Symlink(r.FormValue("to"), r.FormValue("path")); err != nil {
			http.Error(w, err.Error(), http.StatusInsufficientStorage)
		}
	})
	http.HandleFunc("POST /write", write)
	http.HandleFunc("POST /exit", exit)
	http.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.FormValue("code"))
		w.WriteHeader(code)
	})
	var health, asked atomic.Int64
	health.Store(http.StatusOK)
	http.HandleFunc("GET /health", func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		w.WriteHeader(int(health.Load()))
		fmt.Fprint(w, health.Load())
	})
	http.HandleFunc("GET /asked", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, asked.Load()) })
	http.HandleFunc("POST /health", func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.ParseInt(r.FormValue("code"), 10, 64)
		health.Store(code)
	})
	http.HandleFunc("POST /grpc.health.v1.Health/Check", checkHealth)
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	server := &http.Server{Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	return server.Serve(listener)
}

// checkHealth is a gRPC health service by hand: the service "down" is not serving, every other one is.
func checkHealth(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	status := byte(1)
	if strings.HasSuffix(string(body), "down") {
		status = 2
	}
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
	_, _ = w.Write([]byte{0, 0, 0, 0, 2, 8, status})
}

// crash dies of a signal that the kernel sends for what it does; the first process of a PID namespace cannot
// kill itself. The Go runtime would turn the signal into a panic, so it is told to do nothing.
func crash(number syscall.Signal) {
	var act [4]uint64 // struct sigaction with SIG_DFL
	syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(number), uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0)
	var nowhere *int
	*nowhere = 1
}

func bloat() {
	var held [][]byte
	for {
		block := make([]byte, 1<<20)
		for i := range block {
			block[i] = 1
		}
		held = append(held, block)
	}
}

// inspect tells what the program finds around it.
func inspect(w http.ResponseWriter, r *http.Request) {
	stdin, err := io.ReadAll(os.Stdin)
	found := surroundings(string(stdin))
	found["stdinError"] = err != nil
	_ = json.NewEncoder(w).Encode(found)
}

func surroundings(stdin string) map[string]any {
	host, _ := os.Hostname()
	dir, _ := os.Getwd()
	groups, _ := os.Getgroups()
	status, _ := os.ReadFile("/proc/self/status")
	cgroup, _ := os.ReadFile("/proc/self/cgroup")
	return map[string]any{
		"env": os.Environ(), "args": os.Args, "hostname": host, "dir": dir,
		"uid": os.Getuid(), "gid": os.Getgid(), "groups": groups, "pid": os.Getpid(),
		"stdin": stdin, "status": string(status), "cgroup": string(cgroup),
	}
}

func fickle(path, from, to string) error {
	text, _ := os.ReadFile(path)
	if err := os.WriteFile(path, append(text, '.'), 0o666); err != nil {
		return err
	}
	life := len(text) + 1
	first, _ := strconv.Atoi(from)
	last, _ := strconv.Atoi(to)
	if life >= first && life <= last {
		return fmt.Errorf("this is life %d", life)
	}
	return serve(":" + os.Getenv("PORT"))
}

func ask(method, url string) error {
	request, err := http.NewRequest(method, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}

func terminal() error {
	lines := bufio.NewScanner(os.Stdin)
	for {
		var size [4]uint16
		if _, _, err := syscall.Syscall(syscall.SYS_IOCTL, 0, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size))); err != 0 {
			return err
		}
		fmt.Printf("%dx%d\n", size[1], size[0])
		if !lines.Scan() {
			return lines.Err()
		}
	}
}

// dial reports whether a TCP connection to an address can be made.
func dial(w http.ResponseWriter, r *http.Request) {
	conn, err := net.DialTimeout("tcp", r.FormValue("address"), 2*time.Second)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	conn.Close()
	fmt.Fprintln(w, "connected")
}

// resolve looks a name up, over UDP or TCP.
func resolve(w http.ResponseWriter, r *http.Request) {
	addresses, err := net.DefaultResolver.LookupHost(r.Context(), r.FormValue("name"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	fmt.Fprint(w, strings.Join(addresses, " "))
}

func read(w http.ResponseWriter, r *http.Request) {
	text, err := os.ReadFile(r.FormValue("path"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	_, _ = w.Write(text)
}

// list names the files in a directory, one in a line.
func list(w http.ResponseWriter, r *http.Request) {
	entries, err := os.ReadDir(r.FormValue("path"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	for _, entry := range entries {
		fmt.Fprintln(w, entry.Name())
	}
}

// stat tells the mode and the owner of a file that links lead to.
func stat(w http.ResponseWriter, r *http.Request) {
	info, err := os.Stat(r.FormValue("path"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	owner := info.Sys().(*syscall.Stat_t)
	fmt.Fprintf(w, "%s %d:%d", info.Mode(), owner.Uid, owner.Gid)
}

// write writes the request's body, or so many MiB of zeros, to a file.
func write(w http.ResponseWriter, r *http.Request) {
	file, err := os.OpenFile(r.FormValue("path"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o666)
	if err == nil {
		from := r.Body.(io.Reader)
		if mib, _ := strconv.Atoi(r.FormValue("mib")); mib > 0 {
			from = io.LimitReader(zeros{}, int64(mib)<<20)
		}
		_, err = io.Copy(file, from)
		file.Close()
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInsufficientStorage)
	}
}

func exit(w http.ResponseWriter, r *http.Request) {
	code, _ := strconv.Atoi(r.FormValue("code"))
	fmt.Println("asked to exit")
	os.Exit(code)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
