// Command probe is what the tests run in pods to see the cluster's network from inside.
//
//	probe serve PORT          answer every HTTP request with the pod's name
//	probe get SECONDS URL     print what URL answers; fail if there is none after SECONDS
package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == "serve":
		err = serve(os.Args[2])
	case len(os.Args) == 4 && os.Args[1] == "get":
		err = get(os.Args[2], os.Args[3])
	default:
		err = fmt.Errorf("usage: probe serve PORT | probe get SECONDS URL")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(port string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	name, _ := os.Hostname()
	fmt.Println("serving as", name)
	server := &http.Server{Addr: ":" + port, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, name)
	})}
	context.AfterFunc(ctx, func() { server.Close() })
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		return err
	}
	return nil
}

func get(seconds, url string) error {
	limit, err := strconv.ParseFloat(seconds, 64)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(time.Duration(limit * float64(time.Second)))
	client := &http.Client{Timeout: time.Second}
	for {
		response, err := client.Get(url)
		if err == nil {
			_, err = io.Copy(os.Stdout, response.Body)
			response.Body.Close()
			return err
		}
		if time.Now().After(deadline) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}
