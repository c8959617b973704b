!> Tell a hub what a simulation does, from Fortran. Compile it with chappe_emit.c, which says more.
!>
!>     use chappe_emit_module
!>     call emit('simulation.started', 'name=test', 'model=shallow')
!>     call emit_metric('kinetic_energy', energy, step=12, time='1850-01-13')
!>     call emit_period('18500101', '18500131')
!>     call emit('simulation.ended')
module chappe_emit_module
  use, intrinsic :: iso_c_binding, only: c_char, c_double, c_int, c_loc, c_long, c_null_char, c_ptr
  implicit none
  private
  public :: emit, emit_metric, emit_period

  integer, parameter :: dp = kind(1.0d0), field_chars = 2000

  !> A number of the present simulation, in double or single precision.
  interface emit_metric
    module procedure emit_metric_double, emit_metric_single
  end interface emit_metric

  interface
    integer(c_int) function c_emit(kind, count, fields) bind(c, name='chappe_emit')
      import :: c_char, c_int, c_ptr
      character(kind=c_char), intent(in) :: kind(*)
      integer(c_int), value :: count
      type(c_ptr), intent(in) :: fields(*)
    end function c_emit

    integer(c_int) function c_metric(name, number, step, time) bind(c, name='chappe_emit_metric')
      import :: c_char, c_double, c_int, c_long
      character(kind=c_char), intent(in) :: name(*), time(*)
      real(c_double), value :: number
      integer(c_long), value :: step
    end function c_metric
  end interface

contains

  !> Tell something, with up to six texts NAME=VALUE.
  subroutine emit(kind, field1, field2, field3, field4, field5, field6)
    character(len=*), intent(in) :: kind
    character(len=*), intent(in), optional :: field1, field2, field3, field4, field5, field6
    character(kind=c_char, len=field_chars), target :: texts(6)
    type(c_ptr) :: fields(6)
    integer(c_int) :: i, ignored

    texts = c_null_char
    if (present(field1)) texts(1) = text(field1)
    if (present(field2)) texts(2) = text(field2)
    if (present(field3)) texts(3) = text(field3)
    if (present(field4)) texts(4) = text(field4)
    if (present(field5)) texts(5) = text(field5)
    if (present(field6)) texts(6) = text(field6)
    do i = 1, 6
      fields(i) = c_loc(texts(i))
    end do
    ignored = c_emit(trim(kind)//c_null_char, 6_c_int, fields)
  end subroutine emit

  subroutine emit_metric_double(name, number, step, time)
    character(len=*), intent(in) :: name
    real(dp), intent(in) :: number
    integer, intent(in), optional :: step
    character(len=*), intent(in), optional :: time
    integer(c_long) :: step_or_none
    integer(c_int) :: ignored

    step_or_none = -1_c_long
    if (present(step)) step_or_none = int(step, c_long)
    if (present(time)) then
      ignored = c_metric(trim(name)//c_null_char, real(number, c_double), step_or_none, trim(time)//c_null_char)
    else
      ignored = c_metric(trim(name)//c_null_char, real(number, c_double), step_or_none, c_null_char)
    end if
  end subroutine emit_metric_double

  subroutine emit_metric_single(name, number, step, time)
    character(len=*), intent(in) :: name
    real, intent(in) :: number
    integer, intent(in), optional :: step
    character(len=*), intent(in), optional :: time

    call emit_metric_double(name, real(number, dp), step, time)
  end subroutine emit_metric_single

  !> Output of the model up to `end_date` is complete; dates are YYYYMMDD in the model's calendar.
  subroutine emit_period(begin_date, end_date)
    character(len=*), intent(in) :: begin_date, end_date

    call emit('job.period', 'PeriodDateBegin='//begin_date, 'PeriodDateEnd='//end_date)
  end subroutine emit_period

  !> A text as C wants it.
  function text(field)
    character(len=*), intent(in) :: field
    character(kind=c_char, len=field_chars) :: text

    text = field(:min(len_trim(field), field_chars - 1))//c_null_char
  end function text

end module chappe_emit_module
