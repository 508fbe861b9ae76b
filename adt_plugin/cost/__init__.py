"""What a turn costs: counted from the operations of models of true size, and measured on a device."""
