package main

import (
	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/coordinator/internal/access"
)

func certs() *cobra.Command {
	var want access.Certificates
	cmd := &cobra.Command{
		Use:   "certs --dir DIR",
		Short: "Make a certificate authority, and certificates for etcd, its clients and coordinators",
		Long: `Make NAME.pem and NAME.key in a directory, signed by the authority ca.pem of the
same directory, which is made first where there is none. A server is an etcd member;
name all addresses by which clients and other members reach it. A client is a node, or
a person: its name is the user that etcd takes it for (see init-etcd); root may
administer etcd. A coordinator is the server that people ask; as etcd's client it needs
a certificate beside that.

Files that exist are never overwritten: to renew a certificate, remove its two files and
run the same command again. Agents take up the new ones without a restart. Keep ca.key
away from the servers: whoever has it can be anyone.`,
		Example: `  medwayctl certs --dir pki --server etcd1=10.1.0.5 --server etcd2=10.2.0.5 --server etcd3=10.3.0.5,etcd3.example.com
  medwayctl certs --dir pki --client root --client alice --client dc1-lvs-a`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return want.Make(cmd.OutOrStdout()) },
	}
	f := cmd.Flags()
	f.StringVar(&want.Dir, "dir", "", "`directory` of the authority and its certificates")
	f.StringArrayVar(&want.Servers, "server", nil, "`NAME=HOST[,HOST...]` of an etcd member (may be repeated)")
	f.StringArrayVar(&want.Coordinators, "coordinator", nil, "`NAME=HOST[,HOST...]` of a coordinator (may be repeated)")
	f.StringArrayVar(&want.Clients, "client", nil, "`NAME` of a node or a person (may be repeated)")
	f.IntVar(&want.Days, "days", 365, "how long new certificates are valid")
	completeWith(cmd, "server")
	completeWith(cmd, "coordinator")
	completeWith(cmd, "client")
	_ = cmd.MarkFlagDirname("dir")
	_ = cmd.MarkFlagRequired("dir")
	return cmd
}
